"""The reverse process of the model: the posterior with the network's estimate in place of x_0."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from lit_ddpm._internal.checks import check_one_of
from lit_ddpm.diffusion.gaussian import Gaussian, posterior_coefficients, q_marginal
from lit_ddpm.diffusion.parametrization import Parametrization
from lit_ddpm.diffusion.schedule import Schedule, check_timesteps, expand_like
from lit_ddpm.diffusion.variance import Variance, model_variance


@runtime_checkable
class ImageNetwork(Protocol):
    """A network that states its channels, which `DDPM` compares with those of the data."""

    in_channels: int
    out_channels: int


@runtime_checkable
class ClassConditionalNetwork(Protocol):
    """A network with the keyword argument ``label``, int64 ``[B]``; the value ``num_classes`` means "no label".

    A network without such a value has an attribute ``no_label`` that is False.
    """

    num_classes: int | None


@runtime_checkable
class ConditionalNetwork(Protocol):
    """A network with the keyword argument ``cond``, ``[B, cond_channels, ...]``."""

    cond_channels: int | None


@runtime_checkable
class SpatialNetwork(Protocol):
    """A network for a fixed number of dimensions next to the channels: 1 for sequences, 2 for images, 3 for volumes."""

    dims: int


class Estimate(NamedTuple):
    """The output of a denoiser for noisy images, ``[B, ...]``."""

    x0_hat: Tensor
    fraction: Tensor | None  # position of a learned log variance between log sigma_q^2 (0) and log beta (1)


@dataclass(frozen=True)
class Prediction:
    """The inputs and outputs of one network call on noised images ``[B, ...]``, for an objective."""

    x_0: Tensor
    x_t: Tensor
    t: Tensor  # int64 [B] on the CPU
    eps: Tensor
    output: Tensor  # at least float32
    x0_hat: Tensor  # never clipped
    fraction: Tensor | None = None  # see `Estimate`
    cond: dict[str, Any] = field(default_factory=dict)  # the keyword arguments of the network

    def select(self, rows: Tensor) -> "Prediction":
        """Returns the prediction of the samples with the indices `rows` (int64, on the CPU)."""
        if len(rows) == len(self.t):
            return self

        def chosen(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(self.t)
            return value[rows.to(value.device)] if is_batch else value

        parts = {name: chosen(value) for name, value in vars(self).items() if name != "cond"}
        return Prediction(**parts, cond={name: chosen(value) for name, value in self.cond.items()})


class Denoiser(nn.Module):
    """The model ``p_theta(x_s|x_t)``: a network, a schedule and a parametrization.

    Args:
        network: Any module with ``forward(x_t, t, **cond)``, where t is an int64 tensor ``[B]`` on the device of x_t.
            Its output has the shape of x_t, or for a learned variance twice the channels.
        variance: The variance of ``p_theta(x_s|x_t)``: ``"posterior"``, ``"beta"``, ``"learned"``, ``"fixed_small"``,
            ``"fixed_large"``, or ``"analytic"``, which needs `x0_mse`. The type `Variance` describes them.
        clip: Clip the estimate of x_0 to the range of the data, [-1, 1]. A property of ``p_theta``: it applies to
            sampling and to the variational bound alike, and never to `predict`, which training uses.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parametrization: Parametrization,
        variance: Variance = "posterior",
        clip: bool = False,
    ) -> None:
        super().__init__()
        check_one_of("Denoiser", get_args(Variance), variance=variance)
        if parametrization.needs_signal and schedule.alpha_bar(schedule.num_steps) == 0:
            raise ValueError(
                f"{type(parametrization).__name__} cannot be used with {schedule!r}, whose SNR(T) is zero: "
                "x_T contains no signal to estimate x_0 from; use VParametrization or X0Parametrization."
            )
        self.network = network
        self.schedule = schedule
        self.parametrization = parametrization
        self.variance: Variance = variance
        self.clip = clip
        self.x0_mse: Tensor | None = None  # of validation images at t = 1..T, float64 [T] on the CPU

    @property
    def training_variance(self) -> Variance:
        """The variance of the objectives: that of the posterior for an analytic one, whose errors are not constant."""
        return "posterior" if self.variance == "analytic" else self.variance

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the network, or None for an unconditional one."""
        return self.network.num_classes if isinstance(self.network, ClassConditionalNetwork) else None

    @property
    def no_label(self) -> int | None:
        """The label that means "no label", or None for a network without it."""
        return self.num_classes if getattr(self.network, "no_label", True) else None

    @property
    def cond_channels(self) -> int | None:
        """The channels of the network's condition, or None for a network without one."""
        return self.network.cond_channels if isinstance(self.network, ConditionalNetwork) else None

    def forward(self, x_t: Tensor, t: int | Tensor, **cond: Any) -> Tensor:
        """Returns the estimate of x_0 from `x_t` ``[B, ...]`` at `t`, an int or ``[B]``; clipped if `clip` is set."""
        return self.estimate(x_t, t, **cond).x0_hat

    def estimate(self, x_t: Tensor, t: int | Tensor, **cond: Any) -> Estimate:
        """Returns the estimate of x_0 together with a learned variance; one network call."""
        t = self._timesteps(x_t, t)
        _, x0_hat, fraction = self._call(x_t, t, cond)
        return Estimate(x0_hat.clamp(-1, 1) if self.clip else x0_hat, fraction)

    def predict(self, x_0: Tensor, t: Tensor, eps: Tensor, **cond: Any) -> Prediction:
        """Noises `x_0` ``[B, ...]`` to t ``[B]``, in 1..T, with standard normal `eps` and calls the network once."""
        t = self._timesteps(x_0, t).expand(len(x_0))
        x_t = q_marginal(self.schedule, x_0, t).sample(eps)
        output, x0_hat, fraction = self._call(x_t, t, cond)
        return Prediction(x_0=x_0, x_t=x_t, t=t, eps=eps, output=output, x0_hat=x0_hat, fraction=fraction, cond=cond)

    def p_posterior(self, x_t: Tensor, t: int | Tensor, s: int | Tensor | None = None, **cond: Any) -> Gaussian:
        """Returns ``p_theta(x_s|x_t)``: mu_theta and its variance, with one network call."""
        x0_hat, fraction = self.estimate(x_t, t, **cond)
        return self.p_given_x0_hat(x_t, x0_hat, t, s, fraction)

    def p_given_x0_hat(
        self,
        x_t: Tensor,
        x0_hat: Tensor,
        t: int | Tensor,
        s: int | Tensor | None = None,
        fraction: Tensor | None = None,
        variance: Variance | None = None,
    ) -> Gaussian:
        """Returns ``p_theta(x_s|x_t)`` for a given estimate of x_0: the posterior mean with `x0_hat` in place of x_0.

        A `variance` replaces that of the denoiser. Without a `fraction` a learned variance is sigma_q^2.

        Raises:
            ValueError: If an analytic variance has no `x0_mse`.
        """
        variance = variance or self.variance
        if variance == "analytic" and self.x0_mse is None:
            raise ValueError(
                "variance = 'analytic' needs the x0-MSE of validation images, which a fit measures: load a checkpoint "
                "of a fit with validations and this schedule, or set x0_mse of the denoiser."
            )
        c = posterior_coefficients(self.schedule, t, s)
        mean = expand_like(c.c_t, x_t) * x_t + expand_like(c.c_0, x_t) * x0_hat
        if fraction is None:
            return Gaussian(mean, expand_like(model_variance(c, self.schedule, t, variance, self.x0_mse), x_t))
        least = model_variance(c, self.schedule, t, "fixed_small")
        low, high = expand_like(least.log(), x_t), expand_like(c.beta.log(), x_t)
        return Gaussian(mean, torch.exp(low + fraction.to(low) * (high - low)))

    def measurements(self) -> dict[str, Tensor] | None:
        """Returns what validations measured and the schedule that it belongs to, for a checkpoint; None if nothing."""
        if self.x0_mse is None or not bool(self.x0_mse.any()):
            return None
        return {"x0_mse": self.x0_mse, "log_alpha_bar": self._log_alpha_bar()}

    def load_measurements(self, measurements: dict[str, Tensor] | None) -> None:
        """Restores `measurements`, unless they belong to another schedule."""
        if measurements is None:
            return
        own, found = self._log_alpha_bar(), measurements["log_alpha_bar"]
        if found.shape == own.shape and torch.allclose(found, own, rtol=1e-9):
            self.x0_mse = measurements["x0_mse"]

    def _log_alpha_bar(self) -> Tensor:
        return self.schedule.log_alpha_bar(torch.arange(self.schedule.num_steps + 1))

    def _timesteps(self, x: Tensor, t: int | Tensor) -> Tensor:
        t = check_timesteps(t, 1, self.schedule.num_steps)
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x)):
            raise ValueError(f"t must be an int or have one timestep a sample, [{len(x)}], not {tuple(t.shape)}.")
        return t

    def _call(self, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Calls the network once and returns its output, the estimate of x_0, not clipped, and `Estimate.fraction`."""
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), x_t)
        t_on_device = t.expand(len(x_t)).to(x_t.device, non_blocking=True)
        output: Tensor = self.network(x_t.to(weight.dtype), t_on_device, **cond)
        parts = 2 if self.variance == "learned" else 1
        expected = [len(x_t), parts * x_t.shape[1], *x_t.shape[2:]] if x_t.ndim > 1 else [len(x_t)]
        if list(output.shape) != expected:
            raise ValueError(
                f"the network returned {list(output.shape)} for images of {list(x_t.shape)}: check its out_channels. "
                f"{type(self.parametrization).__name__} with variance={self.variance!r} needs {expected}."
            )
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        fraction = None
        if parts == 2:
            output, position = output.chunk(2, dim=1)
            fraction = (position + 1) / 2
        with torch.autocast(x_t.device.type, enabled=False):
            return output, self.parametrization.x0_hat(self.schedule, output, x_t, t), fraction


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
