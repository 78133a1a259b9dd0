"""Conversion between the values of a dataset and those of a network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.device import to_device

TYPE_LEVELS = {torch.uint8: 256, torch.uint16: 65_536}
"""The number of levels of the integer types that hold pixel levels."""


def to_float(levels: Tensor, num_levels: int = 256) -> Tensor:
    """Converts pixel levels ``0..num_levels - 1`` (an integer type, any shape) to float32 in [-1, 1]."""
    return levels.float() * (2 / (num_levels - 1)) - 1


def to_levels(images: Tensor, num_levels: int = 256) -> Tensor:
    """Converts images in [-1, 1] to the nearest pixel level, uint8 or for more than 256 levels uint16; clips.

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    if not bool(torch.isfinite(images).all()):
        raise InputError("images must be finite to be converted to pixel levels; these contain NaN or infinity.")
    level = ((images.float().clamp(-1, 1) + 1) * ((num_levels - 1) / 2)).round()
    return level.to(level_dtype(num_levels))


def to_uint8(images: Tensor, num_levels: int = 256) -> Tensor:
    """Converts images in [-1, 1] to uint8 in 0..255, rounded to the nearest of `num_levels` levels and clipped.

    Real and generated images share this conversion, for pictures and for FID: with 17 levels, 17 of the 256 values
    occur.

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    return (to_levels(images, num_levels).float() * (255 / (num_levels - 1))).round().to(torch.uint8)


def level_dtype(num_levels: int) -> torch.dtype:
    """Returns the integer type of pixel levels: uint8, or uint16 for more than 256."""
    return torch.uint8 if num_levels <= 256 else torch.uint16


def take(values: Tensor, index: Tensor) -> Tensor:
    """Returns ``values[index]``; torch 2.9 and earlier cannot index uint16."""
    if values.dtype == torch.uint16:
        return values.view(torch.int16)[index].view(torch.uint16)
    return values[index]


@dataclass(frozen=True)
class Standardization:
    """Real values in units of the standard deviation of their channel, about its mean."""

    mean: Tensor  # float32 [C]
    std: Tensor  # float32 [C], positive

    def apply(self, values: Tensor) -> Tensor:
        """Standardizes values ``[B, C, ...]``: float32 of about mean 0 and variance 1."""
        return (values.float() - self._expanded(self.mean, values)) / self._expanded(self.std, values)

    def undo(self, values: Tensor) -> Tensor:
        """Returns standardized values ``[B, C, ...]`` to the units of the data."""
        return values * self._expanded(self.std, values) + self._expanded(self.mean, values)

    @staticmethod
    def _expanded(values: Tensor, like: Tensor) -> Tensor:
        return to_device(values, like.device).reshape(-1, *[1] * (like.ndim - 2))
