"""The two directions between the grey levels of a data set and the numbers of a network."""

import torch
from torch import Tensor


def to_float(levels: Tensor, num_levels: int = 256) -> Tensor:
    """Grey levels ``0..num_levels - 1`` (uint8, any shape) as float32 in [-1, 1]."""
    return levels.float() * (2 / (num_levels - 1)) - 1


def to_uint8(images: Tensor, num_levels: int = 256) -> Tensor:
    """Images in [-1, 1] as uint8 in 0..255, by way of the nearest of `num_levels` grey levels, clipped outside.

    The same for real and generated images, for pictures and for FID: a data set of 17 levels has 17 of the 256 values.

    Raises:
        ValueError: If any value is NaN or infinite.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images must be finite to become uint8; these hold NaN or infinity.")
    level = ((images.float().clamp(-1, 1) + 1) * ((num_levels - 1) / 2)).round()
    return (level * (255 / (num_levels - 1))).round().to(torch.uint8)
