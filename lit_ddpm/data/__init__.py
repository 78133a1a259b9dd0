"""Data modules."""

from lit_ddpm.data.arrays import ArrayDataModule
from lit_ddpm.data.base import ImageDataModule, Images, ImageTensors
from lit_ddpm.data.digits import DigitsDataModule
from lit_ddpm.data.huggingface import HuggingFaceDataModule
from lit_ddpm.data.image_folder import ImageFolderDataModule
from lit_ddpm.data.pixels import Standardization, to_float, to_uint8
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.data.torchvision import TorchvisionDataModule

__all__ = [
    "ArrayDataModule",
    "DataSpec",
    "DigitsDataModule",
    "HuggingFaceDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageTensors",
    "Images",
    "Standardization",
    "TorchvisionDataModule",
    "to_float",
    "to_uint8",
]
