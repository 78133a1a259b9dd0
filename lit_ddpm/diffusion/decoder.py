"""Decoders: the likelihood ``p(x_0|x_1)`` of the last step of the reverse process."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import Configurable
from lit_ddpm.diffusion.gaussian import Gaussian, to_float64


class Decoder(Configurable, ABC):
    """A likelihood of the data under a Gaussian for each component."""

    levels: int | None = None  # the number of pixel levels of the data; None for real-valued data

    @abstractmethod
    def log_prob(self, x_0: Tensor, p: Gaussian) -> Tensor:
        """Returns ``log p(x_0)`` in nats for each component, of the shape of `x_0`."""

    def check(self, x_0: Tensor) -> None:
        """Raises a ValueError if `x_0` is outside the support of this decoder: here, if it is not finite."""
        if not bool(torch.isfinite(x_0).all()):
            raise InputError("images must be finite; these contain NaN or infinity.")


@dataclass(eq=False)
class GaussianDecoder(Decoder):
    """The density of real-valued data, in nats. A density has no bits per dimension."""

    @override
    def log_prob(self, x_0: Tensor, p: Gaussian) -> Tensor:
        return -0.5 * ((x_0 - p.mean) ** 2 / p.var + torch.log(2 * torch.pi * p.var))


@dataclass(eq=False)
class DiscretizedGaussian(Decoder):
    """The Gaussian's mass in the bin of each pixel level, on `levels` values from -1 to 1 (Ho et al. 2020, eq. 13).

    The bins of the two outermost levels extend to infinity, so the masses of all levels sum to one. The logarithm is
    ``log_ndtr(b) + log(-expm1(log_ndtr(a) - log_ndtr(b)))`` on the side of the mean where both tails are
    small. This form keeps values and gradients exact at any distance from the mean.
    """

    levels: int = 256

    def __post_init__(self) -> None:
        """Checks the number of levels."""
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2:
            raise InputError(f"levels = {self.levels!r}: a DiscretizedGaussian needs an integer of at least 2.")

    @override
    def log_prob(self, x_0: Tensor, p: Gaussian) -> Tensor:
        half_bin = 1 / (self.levels - 1)
        std = p.var.sqrt()
        upper = torch.where(x_0 > 1 - half_bin, torch.inf, (x_0 + half_bin - p.mean) / std)
        lower = torch.where(x_0 < -1 + half_bin, -torch.inf, (x_0 - half_bin - p.mean) / std)
        # Mirror bins above the mean to below it: there the logarithm of the CDF is exact.
        mirror = lower + upper > 0
        upper, lower = torch.where(mirror, -lower, upper), torch.where(mirror, -upper, lower)
        log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        log_prob: Tensor = log_upper + torch.log(-torch.expm1(log_lower - log_upper))
        return log_prob

    @override
    def check(self, x_0: Tensor) -> None:
        super().check(x_0)
        low, high = float(x_0.min()), float(x_0.max())
        if low < -1 or high > 1:
            raise InputError(f"images must lie in [-1, 1] for {self}; their range is {low:g} to {high:g}.")
        position = (to_float64(x_0) + 1) / 2 * (self.levels - 1)
        distance = (position - position.round()).abs()
        if float(distance.max()) > 1e-2:
            value = float(x_0.flatten()[int(distance.argmax())])
            raise InputError(
                f"images must lie on the grid of levels = {self.levels} values in [-1, 1], and {value:.6g} is not one "
                "of them: set the decoder's levels to the data's, or use GaussianDecoder (nats, no bits per dimension)."
            )
