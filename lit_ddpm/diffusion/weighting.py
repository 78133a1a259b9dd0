"""Weights on the x0-MSE, one for each timestep."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_ddpm._internal.config import Configurable
from lit_ddpm.diffusion.denoiser import Denoiser, Variance, check_variance, model_variance
from lit_ddpm.diffusion.gaussian import posterior_coefficients
from lit_ddpm.diffusion.schedule import Schedule


def kl_weight(schedule: Schedule, t: int | Tensor, variance: Variance = "posterior") -> Tensor:
    """The weight that turns x0-MSE into the KL term: ``c_0^2 / (2 var)``, float64 of the shape of `t`.

    With variance ``"posterior"`` and t >= 2 it equals ``(SNR(t-1) - SNR(t)) / 2``. At t = 1, where there is no KL,
    it is ``1 / (2 beta_1)``, the weight of a Gaussian decoder. With variance ``"beta"`` the KL is this weight times the
    x0-MSE plus `kl_constant`.

    Raises:
        ValueError: If t lies outside 1..T or `variance` is unknown.
    """
    check_variance(variance)
    c = posterior_coefficients(schedule, t)
    return c.c_0**2 / (2 * model_variance(c.var, c.beta, variance))


def kl_constant(schedule: Schedule, t: int | Tensor, variance: Variance = "posterior") -> Tensor:
    """The part of the KL per dimension that no network can remove, for t >= 2: ``(r - 1 - ln r) / 2``.

    r is ``sigma_q^2 / var``, so the constant is 0 for ``"posterior"``. At t = 1 it is 0 by convention.
    """
    check_variance(variance)
    c = posterior_coefficients(schedule, t)
    ratio = torch.where(c.var > 0, c.var / model_variance(c.var, c.beta, variance), 1)
    return 0.5 * (ratio - 1 - ratio.log())


class Weighting(Configurable, ABC):
    """A weight on the x0-MSE, whatever the network's output stands for."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """The weight for each timestep of `t` (1..T): float64 of its shape, on the CPU."""


class UniformWeighting(Weighting):
    """1 for every t: the lecture's simplified loss."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """See `Weighting.__call__`."""
        return torch.ones_like(denoiser.schedule.snr(t))


class KLWeighting(Weighting):
    """The weight that makes the x0-MSE the KL term of the bound: see `kl_weight`."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """See `Weighting.__call__`."""
        return kl_weight(denoiser.schedule, t, denoiser.variance)


class SNRWeighting(Weighting):
    """SNR(t): the uniform eps-MSE of Ho et al. 2020 (L_simple), written on the x0-MSE."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """See `Weighting.__call__`."""
        return denoiser.schedule.snr(t)


class MinSNRWeighting(Weighting):
    """``min(SNR(t), gamma)`` (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy").

    Args:
        gamma: Where the weight stops growing; must be positive.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma = {gamma}: MinSNRWeighting needs a positive number.")
        self.gamma = gamma

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """See `Weighting.__call__`."""
        return denoiser.schedule.snr(t).clamp(max=self.gamma)
