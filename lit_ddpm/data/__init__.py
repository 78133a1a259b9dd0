"""Data modules."""

from lit_ddpm.data.base import ImageDataModule, ImageTensors
from lit_ddpm.data.digits import DigitsDataModule
from lit_ddpm.data.pixels import to_float, to_uint8

__all__ = ["DigitsDataModule", "ImageDataModule", "ImageTensors", "to_float", "to_uint8"]
