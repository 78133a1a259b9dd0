"""Prediction targets: the meaning of the network's output.

Every parametrization here is affine in the network's output,

    x0_hat = skip_t x_t + scale_t output,

so one method, `Parametrization.coefficients`, defines everything: the estimate of the clean image, the target of the
output, and the factor ``scale^2`` that turns a squared error of the output into one of x_0.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.config import Configurable
from lit_ddpm.diffusion.gaussian import posterior_coefficients
from lit_ddpm.diffusion.schedule import Schedule, expand_like


class Parametrization(Configurable, ABC):
    """The map between the network's output and the clean image."""

    stepwise = False  # whether the map depends on the step from t - 1 to t, and so needs integers
    needs_signal = False  # whether the map divides by the signal in x_t, and so is undefined where SNR(T) is zero

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(skip, scale)``, float64 of the shape of `t`."""

    def x0_hat(self, schedule: Schedule, output: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Returns the estimate of x_0 for an `output`; all of shape ``[B, ...]``, t an int or ``[B]``."""
        skip, scale = self.coefficients(schedule, t)
        return expand_like(skip, x_t) * x_t + expand_like(scale, x_t) * output

    def target(self, schedule: Schedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """Returns the output for which the estimate of x_0 is exact, given the `x_0` and the noise `eps` in x_t."""
        skip, scale = self.coefficients(schedule, t)
        signal, noise = schedule.alpha_bar(t).sqrt(), schedule.one_minus_alpha_bar(t).sqrt()
        return expand_like((1 - skip * signal) / scale, x_0) * x_0 - expand_like(skip * noise / scale, x_0) * eps


@dataclass(eq=False)
class X0Parametrization(Parametrization):
    """The output is the clean image x_0."""

    @override
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(schedule.alpha_bar(t))
        return torch.zeros_like(one), one


@dataclass(eq=False)
class EpsParametrization(Parametrization):
    """The output is the noise (Ho et al. 2020, eq. 11)."""

    needs_signal = True

    @override
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        signal = schedule.alpha_bar(t).sqrt()
        return 1 / signal, -schedule.one_minus_alpha_bar(t).sqrt() / signal


@dataclass(eq=False)
class VParametrization(Parametrization):
    """The output is ``v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0`` (Salimans and Ho 2022, section 4)."""

    @override
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        return schedule.alpha_bar(t).sqrt(), -schedule.one_minus_alpha_bar(t).sqrt()


@dataclass(eq=False)
class MeanParametrization(Parametrization):
    """The output is the posterior mean ``mu_theta`` itself.

    It is here for comparison. At most timesteps mu is nearly x_t, which the network already has as its input, so the
    network learns to copy, and an error of the output is divided by the small c_0 in the estimate of x_0.
    """

    stepwise = True
    needs_signal = True

    @override
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        c = posterior_coefficients(schedule, t)
        return -c.c_t / c.c_0, 1 / c.c_0
