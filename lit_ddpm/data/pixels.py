"""Conversion between the pixel levels of a dataset and the values of a network."""

import torch
from torch import Tensor


def to_float(levels: Tensor, num_levels: int = 256) -> Tensor:
    """Converts pixel levels ``0..num_levels - 1`` (uint8, any shape) to float32 in [-1, 1]."""
    return levels.float() * (2 / (num_levels - 1)) - 1


def to_uint8(images: Tensor, num_levels: int = 256) -> Tensor:
    """Converts images in [-1, 1] to uint8 in 0..255, rounded to the nearest of `num_levels` levels and clipped.

    Real and generated images share this conversion, for pictures and for FID: with 17 levels, 17 of the 256 values
    occur.

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images must be finite to be converted to uint8; these contain NaN or infinity.")
    level = ((images.float().clamp(-1, 1) + 1) * ((num_levels - 1) / 2)).round()
    return (level * (255 / (num_levels - 1))).round().to(torch.uint8)
