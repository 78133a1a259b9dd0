"""Prediction targets: the meaning of the network's output.

Every estimate of the clean image is affine in the prediction,

    x0_hat = skip_t x_t + scale_t prediction,

so one method, `Parametrization.coefficients`, defines everything: the estimate, the target of the prediction, and the
factor ``scale^2`` that turns a squared error of the prediction into one of x_0. The prediction is the network's output,
except where a parametrization has an `activation`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import check_at_least, check_positive
from lit_ddpm._internal.config import Configurable
from lit_ddpm.diffusion.gaussian import marginal_variance, posterior_coefficients
from lit_ddpm.diffusion.schedule import Schedule, expand_like


class Parametrization(Configurable, ABC):
    """The map between the network's output and the clean image."""

    levels: int | None = None  # the number of pixel levels of the data; None for any data
    stepwise = False  # whether the map depends on the step from t - 1 to t, and so needs integers
    needs_signal = False  # whether the map divides by the signal in x_t, and so is undefined where SNR(T) is zero

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(skip, scale)``, float64 of the shape of `t`."""

    @property
    def outputs(self) -> int:
        """The network's outputs for each component of the images: 1, or one for each of the `levels`."""
        return self.levels or 1

    def input_scale(self, schedule: Schedule, t: Tensor) -> Tensor | None:
        """Returns the factor of x_t in the network's input (c_in), float64 of the shape of `t`; None for x_t itself."""
        return None

    def activation(self, schedule: Schedule, output: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Returns the prediction ``[B, C, ...]`` for the output ``[B, outputs C, ...]``: here the output itself."""
        return output

    def x0_hat(self, schedule: Schedule, output: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Returns the estimate of x_0 for a prediction; all of shape ``[B, ...]``, t an int or ``[B]``."""
        skip, scale = self.coefficients(schedule, t)
        return expand_like(skip, x_t) * x_t + expand_like(scale, x_t) * output

    def target(self, schedule: Schedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """Returns the prediction for which the estimate of x_0 is exact, given `x_0` and the noise `eps` in x_t."""
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
class CategoricalParametrization(X0Parametrization):
    """The outputs are the logits of each pixel's levels, and the prediction is the posterior mean of x_0.

    For one component x of x_t and the level l_k, the probability p_k is proportional to ``exp(logit_k)`` times the
    density of x under ``N(sqrt(alpha_bar) l_k, 1 - alpha_bar)``. The prediction is ``sum p_k l_k``. The ideal estimate
    of discrete data has this form, with logits that depend on the other components alone. So the network need not learn
    how to round a pixel to its level.

    Args:
        levels: The number of pixel levels of the data, from -1 to 1; the network has as many outputs for each channel.
    """

    levels: int = 256

    def __post_init__(self) -> None:
        """Checks the number of levels."""
        check_at_least(self, 2, levels=self.levels)

    @override
    def activation(self, schedule: Schedule, output: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        logits = output.reshape(x_t.shape[0] * x_t.shape[1], self.levels, -1)
        level = torch.linspace(-1, 1, self.levels, dtype=logits.dtype, device=logits.device)
        # The exponent of the density is quadratic in the level, and its constant cancels: one product adds the rest.
        signal, noise_variance = schedule.alpha_bar(t).sqrt(), schedule.one_minus_alpha_bar(t)
        linear = expand_like(signal / noise_variance, x_t) * x_t
        quadratic = expand_like(-0.5 * signal**2 / noise_variance, x_t).expand(x_t.shape)
        coefficients = torch.stack([linear, quadratic], dim=2).to(logits.dtype).reshape(len(logits), 2, -1)
        powers = torch.stack([level, level**2], dim=1).expand(len(logits), -1, -1)
        posterior = torch.baddbmm(logits, powers, coefficients).softmax(dim=1)
        return (level @ posterior).reshape(x_t.shape)


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
class EDMParametrization(Parametrization):
    """The output is what is left after the best linear estimate of x_0, in units of its error (Karras et al. 2022).

    For independent data of mean 0 and variance ``sigma_data^2`` the best linear estimate is ``skip x_t``, and the
    target of the network has variance 1 at every t. So has its input, x_t divided by its standard deviation (c_in).
    The paper's c_skip and c_out are those of ``x_t / sqrt(alpha_bar)`` with ``sigma^2 = 1 / SNR``. For
    ``sigma_data = 1`` the output is -v, and the input x_t.

    Args:
        sigma_data: The standard deviation of the data.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Checks the standard deviation."""
        check_positive(self, sigma_data=self.sigma_data)

    @override
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        signal, variance = schedule.alpha_bar(t).sqrt(), marginal_variance(schedule, t, self.sigma_data)
        noise = schedule.one_minus_alpha_bar(t).sqrt()
        return self.sigma_data**2 * signal / variance, self.sigma_data * noise / variance.sqrt()

    @override
    def input_scale(self, schedule: Schedule, t: Tensor) -> Tensor | None:
        return marginal_variance(schedule, t, self.sigma_data).rsqrt()


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
