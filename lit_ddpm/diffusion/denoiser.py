"""The reverse process of the model: the posterior with the network's estimate in place of x_0."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lit_ddpm._internal.checks import InputError, check_one_of
from lit_ddpm._internal.device import to_device
from lit_ddpm._internal.interpolation import interpolate
from lit_ddpm.diffusion.gaussian import Gaussian, posterior_coefficients, q_marginal
from lit_ddpm.diffusion.network import NetworkSpec, network_time
from lit_ddpm.diffusion.parametrization import Parametrization
from lit_ddpm.diffusion.schedule import Schedule, check_timesteps, expand_like, log_snr_of
from lit_ddpm.diffusion.variance import Variance, model_variance


class Estimate(NamedTuple):
    """The output of a denoiser for noisy images, ``[B, ...]``."""

    x0_hat: Tensor
    log_variance_position: Tensor | None  # of a learned variance, between log sigma_q^2 (0) and log beta (1)


@dataclass(frozen=True)
class Prediction:
    """The inputs and outputs of one network call on noised images ``[B, ...]``, for an objective."""

    x_0: Tensor
    x_t: Tensor
    t: Tensor  # [B] on the CPU, int64, or float64 in continuous time
    eps: Tensor
    output: Tensor  # after the activation of the parametrization, at least float32
    x0_hat: Tensor  # never clipped
    log_variance_position: Tensor | None = None  # see `Estimate`
    cond: dict[str, Any] = field(default_factory=dict)  # the keyword arguments of the network


RANGE_TOLERANCE = 1e-6
"""The distance in log SNR within which two schedules end at the same noise."""


class Denoiser(nn.Module):
    """The model ``p_theta(x_s|x_t)``: a network, a schedule and a parametrization.

    Args:
        network: Any module with ``forward(x_t, t, **cond)``, where t is ``[B]`` on the device of x_t. Its output has
            the shape of x_t: `Parametrization.outputs` times the channels, and those of x_t once more for a learned
            variance. `Network` lists the attributes that it may have, such as the time that it gets as t.
        schedule: The forward process.
        parametrization: The meaning of the network's output, and the scale of its input.
        variance: The variance of ``p_theta(x_s|x_t)``: ``"posterior"``, ``"beta"``, ``"learned"``, ``"fixed_small"``,
            ``"fixed_large"``, or ``"analytic"``, which needs `x0_mse`. The type `Variance` describes them.
        clip: Clip the estimate of x_0 to the range of the data, [-1, 1]. A property of ``p_theta``: it applies to
            sampling and to the variational bound alike, and never to `predict`, which training uses. None is False; a
            `DDPM` clips pixel levels by default.
        x0_mse: The x0-MSE of held-out images at t = 1..T, float64 ``[T]``; at t = 1 the variance of the decoder. See
            `Bound.x0_mse`.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parametrization: Parametrization,
        variance: Variance = "posterior",
        clip: bool | None = None,
        x0_mse: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_one_of("Denoiser", get_args(Variance), variance=variance)
        NetworkSpec.of(network)  # refuses an unknown time
        if parametrization.needs_signal and schedule.alpha_bar(schedule.num_steps) == 0:
            raise InputError(
                f"{type(parametrization).__name__} cannot be used with {schedule!r}, whose SNR(T) is zero: "
                "x_T contains no signal to estimate x_0 from; use VParametrization or X0Parametrization."
            )
        self.network = network
        self.schedule = schedule
        self.parametrization = parametrization
        self.variance: Variance = variance
        self.clip = bool(clip)
        self.x0_mse: Tensor | None = None
        if x0_mse is not None:
            self.set_x0_mse(x0_mse)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor, for another denoiser of the same network."""
        names = ("network", "schedule", "parametrization", "variance", "clip", "x0_mse")
        return {name: getattr(self, name) for name in names}

    @property
    def network_spec(self) -> NetworkSpec:
        """What the network takes."""
        return NetworkSpec.of(self.network)

    def set_clip(self, clip: bool) -> None:
        """Sets whether the estimate of x_0 is clipped."""
        self.clip = clip

    def set_x0_mse(self, x0_mse: Tensor) -> None:
        """Sets the x0-MSE that an analytic variance uses, ``[T]`` for t = 1..T.

        Raises:
            ValueError: If it has another shape.
        """
        if x0_mse.shape != (self.schedule.num_steps,):
            needed = f"one value for each t = 1..T, {self.schedule.num_steps}"
            raise InputError(f"x0_mse must have {needed}, not {list(x0_mse.shape)}.")
        self.x0_mse = x0_mse.detach().cpu().double()

    @property
    def training_variance(self) -> Variance:
        """The variance of the objectives: that of the posterior for an analytic one, whose errors are not constant."""
        return "posterior" if self.variance == "analytic" else self.variance

    @property
    def outputs(self) -> int:
        """The outputs that the network needs for each component of the images."""
        return self.parametrization.outputs + (self.variance == "learned")

    def forward(self, x_t: Tensor, t: int | Tensor, **cond: Any) -> Tensor:
        """Returns the estimate of x_0 from `x_t` ``[B, ...]`` at `t`, an int or ``[B]``; clipped if `clip` is set."""
        return self.estimate(x_t, t, **cond).x0_hat

    def estimate(self, x_t: Tensor, t: int | Tensor, **cond: Any) -> Estimate:
        """Returns the estimate of x_0 together with a learned variance; one network call."""
        t = self._timesteps(x_t, t)
        _, x0_hat, position = self._call(x_t, t, cond)
        return Estimate(x0_hat.clamp(-1, 1) if self.clip else x0_hat, position)

    def predict(self, x_0: Tensor, t: Tensor, eps: Tensor, **cond: Any) -> Prediction:
        """Noises `x_0` ``[B, ...]`` to t ``[B]``, in 1..T, with standard normal `eps` and calls the network once."""
        t = self._timesteps(x_0, t).expand(len(x_0))
        x_t = q_marginal(self.schedule, x_0, t).sample(eps)
        output, x0_hat, position = self._call(x_t, t, cond)
        return Prediction(x_0, x_t, t, eps, output, x0_hat, position, cond)

    def p_posterior(self, x_t: Tensor, t: int | Tensor, s: int | Tensor | None = None, **cond: Any) -> Gaussian:
        """Returns ``p_theta(x_s|x_t)``: mu_theta and its variance, with one network call."""
        x0_hat, position = self.estimate(x_t, t, **cond)
        return self.p_given_x0_hat(x_t, x0_hat, t, s, position)

    def p_given_x0_hat(
        self,
        x_t: Tensor,
        x0_hat: Tensor,
        t: int | Tensor,
        s: int | Tensor | None = None,
        log_variance_position: Tensor | None = None,
        variance: Variance | None = None,
    ) -> Gaussian:
        """Returns ``p_theta(x_s|x_t)`` for a given estimate of x_0: the posterior mean with `x0_hat` in place of x_0.

        A `variance` replaces that of the denoiser. Without a `log_variance_position` a learned variance is sigma_q^2.

        Raises:
            ValueError: If an analytic variance has no `x0_mse`.
        """
        variance = variance or self.variance
        if variance == "analytic" and self.x0_mse is None:
            raise InputError(
                "variance = 'analytic' needs the x0-MSE of validation images, which a fit measures: load a checkpoint "
                "of a fit with validations and this schedule, or set x0_mse of the denoiser."
            )
        c = posterior_coefficients(self.schedule, t, s)
        mean = expand_like(c.c_t, x_t) * x_t + expand_like(c.c_0, x_t) * x0_hat
        if log_variance_position is None:
            return Gaussian(mean, expand_like(model_variance(c, self.schedule, t, variance, self.x0_mse), x_t))
        least = model_variance(c, self.schedule, t, "fixed_small")
        low, high = expand_like(least.log(), x_t), expand_like(c.beta.log(), x_t)
        return Gaussian(mean, torch.exp(low + log_variance_position.to(low) * (high - low)))

    def state(self) -> dict[str, Tensor]:
        """Returns the schedule of the training and what validations measured on it, for a checkpoint."""
        state = {"log_alpha_bar": self.schedule.log_alpha_bar(torch.arange(self.schedule.num_steps + 1))}
        if self.x0_mse is not None and bool(self.x0_mse.any()):
            state["x0_mse"] = self.x0_mse
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restores what `state` returned; the measurements of another schedule only if the network gets log SNR.

        Raises:
            ValueError: If the network gets log SNR, and this schedule leaves the range that it was trained on.
        """
        found, own = state["log_alpha_bar"], self.state()["log_alpha_bar"]
        same = found.shape == own.shape and torch.allclose(found, own, rtol=1e-9)
        x0_mse = state.get("x0_mse")
        if not same and self.network_spec.time == "t":
            warnings.warn(
                f"The network was trained with another schedule of {len(found) - 1:,} steps, and its timesteps have "
                f"another noise in {self.schedule}; a network with time='log_snr' could use both.",
                stacklevel=2,
            )
            return
        if not same:
            # Interpolated in -log SNR, which increases; without signal it is infinite.
            knots, x = (-log_snr_of(bar[1:]).clamp(min=-100) for bar in (found, own))
            if x[0] < knots[0] - RANGE_TOLERANCE or x[-1] > knots[-1] + RANGE_TOLERANCE:
                raise InputError(
                    f"{self.schedule} has a log SNR of {-x[0]:g} to {-x[-1]:g}, but the network was trained on "
                    f"{-knots[0]:g} to {-knots[-1]:g}: change the ends of the schedule, or train again."
                )
            if x0_mse is not None:
                x0_mse = interpolate(x, knots, x0_mse.clamp(min=1e-30).log()).exp()
        if x0_mse is not None:
            self.set_x0_mse(x0_mse)

    def _timesteps(self, x: Tensor, t: int | Tensor) -> Tensor:
        t = check_timesteps(t, 1, self.schedule.num_steps, real=self.network_spec.time == "log_snr")
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x)):
            raise ValueError(f"t must be an int or have one timestep a sample, [{len(x)}], not {tuple(t.shape)}.")
        return t

    def _call(self, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Calls the network once; returns the prediction, x0_hat without clipping, and the rest of `Estimate`."""
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), x_t)
        time = to_device(network_time(self.schedule, t, self.network_spec.time).expand(len(x_t)), x_t.device)
        scale = self.parametrization.input_scale(self.schedule, t)
        x = x_t if scale is None else x_t * expand_like(scale, x_t)
        output: Tensor = self.network(x.to(weight.dtype), time, **cond)
        expected = [len(x_t), self.outputs * x_t.shape[1], *x_t.shape[2:]] if x_t.ndim > 1 else [len(x_t)]
        if list(output.shape) != expected:
            raise InputError(
                f"the network returned {list(output.shape)} for images of {list(x_t.shape)}: check its out_channels. "
                f"{type(self.parametrization).__name__} with variance={self.variance!r} needs {expected}."
            )
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        position = None
        if self.variance == "learned":
            output, logits = output.tensor_split([-x_t.shape[1]], dim=1)
            position = (logits + 1) / 2
        with torch.autocast(x_t.device.type, enabled=False):
            prediction = self.parametrization.activation(self.schedule, output, x_t, t)
            return prediction, self.parametrization.x0_hat(self.schedule, prediction, x_t, t), position


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Runs a block without gradients and in evaluation mode, then restores the mode of every submodule."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child in training:
            child.training = True
