"""Conditions that are computed from the images themselves, such as a lower resolution."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least
from lit_ddpm._internal.config import Configurable


class Condition(Configurable, ABC):
    """The condition ``cond`` of a network as a function of its images; a subclass implements one method."""

    @abstractmethod
    def __call__(self, x_0: Tensor) -> Tensor:
        """Returns the conditions ``[B, C', ...]`` of images ``[B, C, ...]``, at any resolution."""


@dataclass(eq=False)
class LowResolution(Condition):
    """The means of blocks of pixels: a model with this condition increases the resolution (Saharia et al. 2021).

    Args:
        factor: The ratio of the resolutions, and the length of a block along each axis.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        """Checks the factor."""
        check_at_least(self, 2, factor=self.factor)

    @override
    def __call__(self, x_0: Tensor) -> Tensor:
        size = [length // self.factor for length in x_0.shape[2:]]
        if min(size, default=0) < 1:
            raise InputError(
                f"factor = {self.factor} of LowResolution is too large for images of {list(x_0.shape[1:])}."
            )
        return F.interpolate(x_0, size, mode="area")
