"""Inpainting of handwritten digits: a model draws the missing block of an image from the pixels around it."""

from digits_inpainting.data import MaskedDigits, condition
from digits_inpainting.model import InpaintingDDPM
from digits_inpainting.network import InpaintingNetwork
from digits_inpainting.objective import HuberLoss

__all__ = ["HuberLoss", "InpaintingDDPM", "InpaintingNetwork", "MaskedDigits", "condition"]
