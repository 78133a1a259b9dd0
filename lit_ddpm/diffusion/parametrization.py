r"""What the network's output stands for.

Every parametrization here is affine in the network's output,

.. math:: \hat x_0 = \mathrm{skip}_t \, x_t + \mathrm{scale}_t \cdot \mathrm{output},

so one method, `Parametrization.coefficients`, says everything: the estimate of the clean image, the target that the
output is trained to meet, and the factor ``scale^2`` that turns an error of the output into an error of x_0.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_ddpm._internal.config import Configurable
from lit_ddpm.diffusion.gaussian import posterior_coefficients
from lit_ddpm.diffusion.schedule import Schedule, expand_like


class Parametrization(Configurable, ABC):
    """The map between the network's output and the clean image.

    Attributes:
        needs_signal: Whether it divides by the signal left in x_t, and so cannot be used where SNR(T) is zero.
    """

    needs_signal = False

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """``(skip, scale)`` in float64, of the shape of `t`."""

    def x0_hat(self, schedule: Schedule, output: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The estimate of x_0 that `output` stands for; all of shape ``[B, ...]``, t an int or ``[B]``."""
        skip, scale = self.coefficients(schedule, t)
        return expand_like(skip, x_t) * x_t + expand_like(scale, x_t) * output

    def target(self, schedule: Schedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """The output that would make the estimate of x_0 exact where x_t holds `x_0` and the noise `eps`."""
        skip, scale = self.coefficients(schedule, t)
        signal, noise = schedule.alpha_bar(t).sqrt(), schedule.one_minus_alpha_bar(t).sqrt()
        return expand_like((1 - skip * signal) / scale, x_0) * x_0 - expand_like(skip * noise / scale, x_0) * eps


class X0Parametrization(Parametrization):
    """The output is the clean image itself."""

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """See `Parametrization.coefficients`."""
        one = torch.ones_like(schedule.alpha_bar(t))
        return torch.zeros_like(one), one


class EpsParametrization(Parametrization):
    """The output is the noise (Ho et al. 2020, eq. 11)."""

    needs_signal = True

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """See `Parametrization.coefficients`."""
        signal = schedule.alpha_bar(t).sqrt()
        return 1 / signal, -schedule.one_minus_alpha_bar(t).sqrt() / signal


class VParametrization(Parametrization):
    """The output is ``v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0`` (Salimans and Ho 2022, section 4)."""

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """See `Parametrization.coefficients`."""
        return schedule.alpha_bar(t).sqrt(), -schedule.one_minus_alpha_bar(t).sqrt()


class MeanParametrization(Parametrization):
    """The output is the posterior mean ``mu_theta`` itself.

    This is what the lecture asks why not to do: x_t, which the network is given, makes up nearly all of mu at most
    timesteps, so the network spends itself on copying, and an error of it is divided by the small c_0 on its way to
    x_0.
    """

    needs_signal = True

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """See `Parametrization.coefficients`."""
        c = posterior_coefficients(schedule, t)
        return -c.c_t / c.c_0, 1 / c.c_0
