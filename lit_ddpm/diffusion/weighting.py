"""Weights on the x0-MSE, one for each timestep; the KL of the bound is one of them.

Every weight is that of the KL times a factor. The factors of the literature are stated in one of two ways: as a weight
at uniform t on a given schedule, such as `SNRWeighting`, or as a function of log SNR that holds on any schedule
(`LogSNRWeighting`). If the factor does not increase with log SNR, the objective itself is a bound, that of images with
Gaussian noise added (Kingma and Gao 2023, "Understanding Diffusion Objectives as the ELBO with Simple Data
Augmentation").
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_positive
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
        check_positive(self, gamma=self.gamma)

    @override
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return denoiser.schedule.snr(t).clamp(max=self.gamma)


@dataclass(eq=False)
class P2Weighting(Weighting):
    """``SNR(t) / (k + SNR(t))^gamma`` (Choi et al. 2022, "Perception Prioritized Training of Diffusion Models")."""

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_positive(self, k=self.k)
        if not self.gamma >= 0:
            raise InputError(f"gamma = {self.gamma} of P2Weighting must not be negative.")

    @override
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        snr = denoiser.schedule.snr(t)
        return snr / (self.k + snr) ** self.gamma


class LogSNRWeighting(Weighting):
    """The weight of the bound times a function of log SNR, so the objective does not depend on the schedule.

    The function is evaluated at the mean SNR of the step from t - 1 to t, which is finite even where SNR(T) is zero.
    """

    @abstractmethod
    def factor(self, log_snr: Tensor) -> Tensor:
        """Returns the factor on the bound for values of log SNR, float64 of their shape."""

    @override
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        snr = denoiser.schedule.snr
        mean_snr = snr(t) if is_real(t) else (snr((t - 1).clamp(min=1)) + snr(t)) / 2
        return self.factor(mean_snr.log()) * KLWeighting()(denoiser, t)


@dataclass(eq=False)
class SigmoidWeighting(LogSNRWeighting):
    """The factor ``sigmoid(bias - log SNR)`` (Kingma and Gao 2023, section 5)."""

    bias: float = 2.0

    @override
    def factor(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - log_snr)


@dataclass(eq=False)
class FlowMatchingWeighting(LogSNRWeighting):
    """The factor ``exp(-log SNR / 2)``: the uniform v-MSE on the cosine schedule.

    It is also the uniform velocity MSE of flow matching on straight paths (Lipman et al. 2023). `VParametrization`
    with `PredictionMSE` has this factor on a cosine schedule only (Salimans and Ho 2022).
    """

    @override
    def factor(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / 2)


@dataclass(eq=False)
class EDMWeighting(LogSNRWeighting):
    """The factor ``N(log SNR; -2 mean, (2 std)^2) (1 / SNR + sigma_data^2)`` (Karras et al. 2022, "EDM").

    EDM draws log sigma from a normal distribution, where ``SNR = 1 / sigma^2``, and weights its loss by
    ``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2``. The factor is the product of both.

    Args:
        mean: The mean of log sigma.
        std: The standard deviation of log sigma.
        sigma_data: The standard deviation of the data.
    """

    mean: float = -1.2
    std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_positive(self, std=self.std, sigma_data=self.sigma_data)

    @override
    def factor(self, log_snr: Tensor) -> Tensor:
        density = torch.exp(-(((log_snr + 2 * self.mean) / (2 * self.std)) ** 2) / 2)
        return density * (torch.exp(-log_snr) + self.sigma_data**2)
