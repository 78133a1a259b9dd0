"""Weights on the x0-MSE, one for each timestep; the KL of the bound is one of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.config import Configurable
from lit_ddpm.diffusion.denoiser import Denoiser
from lit_ddpm.diffusion.gaussian import posterior_coefficients
from lit_ddpm.diffusion.schedule import Schedule, is_real
from lit_ddpm.diffusion.variance import Variance, model_variance


def kl_weight(schedule: Schedule, t: int | Tensor, variance: Variance = "posterior") -> Tensor:
    """Returns the weight w_t that turns the x0-MSE into the KL: ``c_0^2 / (2 var)``, float64 of the shape of `t`.

    With variance ``"posterior"`` and t >= 2 it equals ``(SNR(t-1) - SNR(t)) / 2``. At t = 1, where there is no KL,
    it is ``1 / (2 beta_1)``, the weight of a Gaussian decoder. With variance ``"beta"`` the KL is this weight times the
    x0-MSE plus `kl_constant`.
    """
    c = posterior_coefficients(schedule, t)
    return c.c_0**2 / (2 * model_variance(c, schedule, t, variance))


def kl_constant(schedule: Schedule, t: int | Tensor, variance: Variance = "posterior") -> Tensor:
    """Returns the KL per dimension of a perfect x0_hat, for t >= 2: ``(r - 1 - ln r) / 2``, r = ``sigma_q^2 / var``.

    The constant is 0 for ``"posterior"``. At t = 1 it is 0 by convention.
    """
    c = posterior_coefficients(schedule, t)
    ratio = torch.where(c.var > 0, c.var / model_variance(c, schedule, t, variance), 1)
    return 0.5 * (ratio - 1 - ratio.log())


class Weighting(Configurable, ABC):
    """A weight on the x0-MSE, independent of the parametrization."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """Returns the weight for each timestep of `t`, 1..T or real in [1, T]: float64 of its shape, on the CPU."""


@dataclass(eq=False)
class UniformWeighting(Weighting):
    """1 for every t: the simplified loss."""

    @override
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return torch.ones_like(denoiser.schedule.snr(t))


@dataclass(eq=False)
class KLWeighting(Weighting):
    """The weight w_t of the bound, for which the x0-MSE equals the KL; see `kl_weight`.

    In continuous time it is the limit for small steps, ``-SNR'(t) / 2`` (Kingma et al. 2021, eq. 17).
    """

    @override
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        if is_real(t):
            return -denoiser.schedule.snr_slope(t) / 2
        return kl_weight(denoiser.schedule, t, denoiser.training_variance)


@dataclass(eq=False)
class SNRWeighting(Weighting):
    """SNR(t), for which the x0-MSE equals the uniform eps-MSE: the L_simple of Ho et al. 2020."""

    @override
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return denoiser.schedule.snr(t)


@dataclass(eq=False)
class MinSNRWeighting(Weighting):
    """``min(SNR(t), gamma)`` (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy")."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        """Checks gamma."""
        if not self.gamma > 0:
            raise ValueError(f"gamma = {self.gamma}: MinSNRWeighting needs a positive number.")

    @override
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return denoiser.schedule.snr(t).clamp(max=self.gamma)
