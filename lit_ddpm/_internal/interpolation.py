"""Piecewise linear interpolation."""

import torch
from torch import Tensor


def interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Returns the piecewise linear function through ``(knots, values)`` at `x`, constant outside the knots.

    The knots increase strictly; all are of one dtype, and the result has the shape of `x`.
    """
    if len(knots) == 1:
        return values.expand(x.shape).clone()
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    fraction = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
    return torch.lerp(values[right - 1], values[right], fraction.clamp(0, 1))
