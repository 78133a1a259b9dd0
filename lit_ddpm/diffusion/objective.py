"""Objectives: the training loss of each sample, in nats (or squared error) per dimension, at a single t.

The equivalence for t >= 2, with the variance of p_theta equal to ``sigma_q^2``:

    KL(q(x_{t-1}|x_t,x_0) || p_theta(x_{t-1}|x_t)) = |mu_theta - mu_q|^2 / (2 sigma_q^2) = w_t |x0_hat - x_0|^2
    w_t = c_0^2 / (2 sigma_q^2) = (SNR(t-1) - SNR(t)) / 2

`PosteriorKL` computes the left side from means and variances, `X0MSE` the right side; neither calls the other.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_positive
from lit_ddpm._internal.config import Configurable
from lit_ddpm._internal.device import to_device
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser, Prediction
from lit_ddpm.diffusion.gaussian import gaussian_kl, q_posterior, to_float64
from lit_ddpm.diffusion.schedule import expand_like
from lit_ddpm.diffusion.timesteps import TimestepSampler, UniformTimesteps
from lit_ddpm.diffusion.weighting import UniformWeighting, Weighting, kl_constant, kl_weight


class Objective(Configurable, ABC):
    """A loss for each sample of a prediction."""

    decoder: Decoder | None = None  # the likelihood at t = 1; None for an objective without one
    stepwise = False  # whether it needs the step from t - 1 to t, and so has no continuous-time form

    @abstractmethod
    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        """Returns the loss of each sample, ``[B]``, averaged over its dimensions and not over the batch."""

    def check(self, denoiser: Denoiser) -> None:
        """Raises a ValueError if this objective cannot train the denoiser; `DDPM` calls it once, when it is built."""

    def with_decoder(self, decoder: Decoder) -> "Objective":
        """Returns this objective with `decoder` where it needs one and has none."""
        return self


@dataclass(eq=False)
class PosteriorKL(Objective):
    """The full form: the KL of the two Gaussians at t >= 2, and the decoder's likelihood at t = 1; nats per dimension.

    The means are subtracted in float64. Their difference is small next to their size, and float64 keeps the full form
    exact without the knowledge that their x_t terms cancel.

    Args:
        decoder: The likelihood at t = 1, where the true posterior has no variance and there is no KL; required in a
            call with t = 1. `DDPM` fills in its own decoder.
    """

    decoder: Decoder | None = None

    stepwise = True

    @override
    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        x_0, x_t, x0_hat = (to_float64(x) for x in (pred.x_0, pred.x_t, pred.x0_hat))
        t, position, variance = pred.t.clamp(min=2), pred.log_variance_position, denoiser.training_variance
        q = q_posterior(denoiser.schedule, x_t, x_0, t)
        p = denoiser.p_given_x0_hat(x_t, x0_hat, t, log_variance_position=position, variance=variance)
        loss = gaussian_kl(q, p).flatten(1).mean(1)
        rows = to_device((pred.t == 1).nonzero().flatten(), x_0.device)
        if len(rows) > 0:
            if self.decoder is None:
                raise InputError("PosteriorKL has no KL at t = 1: give it a decoder, such as DiscretizedGaussian(256).")
            position = position[rows] if position is not None else None
            p = denoiser.p_given_x0_hat(x_t[rows], x0_hat[rows], 1, log_variance_position=position, variance=variance)
            nll = -self.decoder.log_prob(x_0[rows], p)
            loss = loss.index_copy(0, rows, nll.flatten(1).mean(1))
        return loss

    @override
    def with_decoder(self, decoder: Decoder) -> Objective:
        return self if self.decoder is not None else replace(self, decoder=decoder)


class _MeanObjective(Objective):
    """An objective that trains the mean of ``p_theta``, but not its variance."""

    @override
    def check(self, denoiser: Denoiser) -> None:
        if denoiser.variance == "learned":
            name = type(self).__name__
            raise InputError(f"variance = 'learned' is not trained by {name}: use PosteriorKL or HybridObjective.")


@dataclass(eq=False)
class X0MSE(_MeanObjective):
    """The simplified form: a weight, uniform if None, times the mean squared error of x0_hat per dimension."""

    weighting: Weighting | None = None

    @override
    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        error = (to_float64(pred.x0_hat) - to_float64(pred.x_0)) ** 2
        mse = error.flatten(1).mean(1)
        return expand_like((self.weighting or UniformWeighting())(denoiser, pred.t), mse) * mse


@dataclass(eq=False)
class PredictionMSE(_MeanObjective):
    """The mean squared error of the network's output, per dimension; with `EpsParametrization` L_simple of Ho et al."""

    @override
    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        target = denoiser.parametrization.target(denoiser.schedule, pred.x_0, pred.eps, pred.t)
        return ((pred.output - target) ** 2).flatten(1).mean(1)


@dataclass(eq=False)
class HybridObjective(Objective):
    """L_hybrid: a simple loss that trains the mean, plus a small multiple of the KL that trains the variance alone.

    ``simple + weight T KL``, with the gradient of the KL stopped at x0_hat (Nichol and Dhariwal 2021, eq. 16).

    Args:
        simple: The loss of the mean; `PredictionMSE` if None.
        weight: The weight of the bound's KL, nats per dimension summed over t.
        decoder: See `PosteriorKL`.
    """

    simple: Objective | None = None
    weight: float = 0.001
    decoder: Decoder | None = None

    stepwise = True

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_positive(self, weight=self.weight)
        if isinstance(self.simple, PosteriorKL | HybridObjective):
            raise InputError(
                f"simple = {type(self.simple).__name__} of HybridObjective trains the variance too: use an objective "
                "of the mean, such as PredictionMSE or X0MSE, or PosteriorKL alone."
            )

    @override
    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        self.check(denoiser)
        kl = PosteriorKL(self.decoder)(denoiser, replace(pred, x0_hat=pred.x0_hat.detach()))
        simple = (self.simple or PredictionMSE())(denoiser, pred)
        return simple + self.weight * denoiser.schedule.num_steps * kl.to(torch.promote_types(simple.dtype, kl.dtype))

    @override
    def check(self, denoiser: Denoiser) -> None:
        if denoiser.variance != "learned":
            raise InputError(f"HybridObjective trains a variance: set variance to learned, not {denoiser.variance!r}.")

    @override
    def with_decoder(self, decoder: Decoder) -> Objective:
        return self if self.decoder is not None else replace(self, decoder=decoder)


def check_training(denoiser: Denoiser, objective: Objective, timesteps: TimestepSampler) -> None:
    """Raises a ValueError if the denoiser cannot be trained by the objective at the timesteps of the sampler."""
    objective.check(denoiser)
    if not timesteps.continuous:
        return
    name, schedule = type(timesteps).__name__, denoiser.schedule
    if (time := denoiser.network_spec.time) != "log_snr":
        raise InputError(f"timesteps = {name} draws real numbers: set time of the network to log_snr, not {time!r}.")
    for part in (objective, denoiser.parametrization):
        if part.stepwise:
            raise InputError(
                f"timesteps = {name} does not fit {type(part).__name__}, which is defined by single steps: in "
                "continuous time the objective of the bound is X0MSE with KLWeighting."
            )
    if schedule.alpha_bar(schedule.num_steps) == 0:
        raise InputError(f"timesteps = {name} needs a schedule with SNR(T) > 0, not {schedule}.")


class TrainingLoss(NamedTuple):
    """The loss of a batch and what it was computed from."""

    loss: Tensor  # the weighted mean of the losses, a scalar
    losses: Tensor  # the objective of each sample, [B]
    weight: Tensor  # from the timestep sampler, float64 [B] on the CPU
    pred: Prediction


def training_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    objective: Objective | None = None,
    timesteps: TimestepSampler | None = None,
    **cond: Any,
) -> TrainingLoss:
    """Draws timesteps and noise from torch's global generators and returns the loss of a batch; one network call.

    ``training_loss(denoiser, x_0).loss.backward()`` is a training step without Lightning, with floating-point images
    `x_0` ``[B, ...]`` on the device of the network. The defaults are `PredictionMSE` and `UniformTimesteps`. A sampler
    that follows the losses, such as `AdaptiveTimesteps`, is updated with those of this batch and process.
    """
    timesteps = timesteps or UniformTimesteps()
    result = loss_of_batch(denoiser, x_0, objective or PredictionMSE(), timesteps, **cond)
    if timesteps.uses_losses:
        timesteps.update(result.pred.t, result.losses.detach().cpu())
    return result


def loss_of_batch(
    denoiser: Denoiser, x_0: Tensor, objective: Objective, timesteps: TimestepSampler, **cond: Any
) -> TrainingLoss:
    """Returns `training_loss` without the update of the timestep sampler."""
    if not x_0.is_floating_point():
        raise TypeError(f"x_0 must be floating point, such as pixels scaled to [-1, 1]; its dtype is {x_0.dtype}.")
    t, weight = timesteps.sample(len(x_0), denoiser.schedule.num_steps)
    pred = denoiser.predict(x_0, t, torch.randn_like(x_0), **cond)
    losses = objective(denoiser, pred)
    return TrainingLoss((expand_like(weight, losses) * losses).mean(), losses, weight, pred)


@torch.no_grad()
def weight_on_x0_mse(objective: Objective, denoiser: Denoiser) -> Tensor:
    """Returns an objective divided by the x0-MSE, measured with a small error of x0_hat: ``[T - 1]`` for t = 2..T.

    It is exact for every objective that is a weight times the x0-MSE, in any parametrization. For others it is the
    ratio at an error of 0.01.
    """
    t = torch.arange(2, denoiser.schedule.num_steps + 1)
    error = torch.full((len(t), 1, 1, 1), 0.01, dtype=torch.float64)
    zero = torch.zeros_like(error)
    _, scale = denoiser.parametrization.coefficients(denoiser.schedule, t)

    def value(x0_hat: Tensor) -> Tensor:
        output = x0_hat / expand_like(scale, x0_hat)
        return objective(denoiser, Prediction(x_0=zero, x_t=zero, t=t, eps=zero, output=output, x0_hat=x0_hat))

    return (value(error) - value(zero)) / 0.01**2


def kl_forms(denoiser: Denoiser, pred: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the KL in its full form, the KL in its simplified form, and the x0-MSE, each ``[B]``, for t >= 2.

    The first two are equal up to rounding. The second is ``w_t`` times the third plus `kl_constant`.
    """
    x0_mse = X0MSE()(denoiser, pred)
    w_t = expand_like(kl_weight(denoiser.schedule, pred.t, denoiser.training_variance), x0_mse)
    constant = expand_like(kl_constant(denoiser.schedule, pred.t, denoiser.training_variance), x0_mse)
    return PosteriorKL()(denoiser, pred), w_t * x0_mse + constant, x0_mse
