"""The likelihood under the probability-flow ODE, next to which the bound can be read.

The ODE has the marginals of the reverse process in continuous time (Song et al. 2021, "Score-Based Generative Modeling
through Stochastic Differential Equations", section 4.3). For ``y = x_t / sqrt(alpha_bar)`` and ``u = -log SNR / 2``,
the logarithm of the standard deviation of the noise in y, it is

    dy/du = y - x0_hat,    d log p(y)/du = -(D - tr dx0_hat/dy),

from t = 1 to T, where x_T is standard normal; D is the number of dimensions. The noise of t = 1 dequantizes the images:

    -log p(x_0) <= E[-log p(x_1) + log q(x_1|x_0) - log p(x_0|x_1)],

with the decoder of the bound as ``p(x_0|x_1)``. The bound replaces the first term by an upper limit.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.extras import import_extra
from lit_ddpm._internal.random import image_generators
from lit_ddpm.diffusion.decoder import Decoder, GaussianDecoder
from lit_ddpm.diffusion.denoiser import Denoiser, evaluating
from lit_ddpm.diffusion.gaussian import Gaussian, q_marginal, to_float64

FLOW_STEPS = 64
"""The Runge-Kutta steps of an exact likelihood, each with four network calls and their gradients."""


@dataclass(frozen=True)
class Likelihood:
    """The terms of the negative log-likelihood of each image, in nats summed over dimensions, float64 on the CPU."""

    flow: Tensor  # [B], -log p(x_1) of the ODE
    dequantization: Tensor  # [B], log q(x_1|x_0)
    reconstruction: Tensor  # [B], -log p(x_0|x_1) of the decoder

    @property
    def total(self) -> Tensor:
        """The negative log-likelihood, ``[B]``."""
        return self.flow + self.dequantization + self.reconstruction


def check_flow(denoiser: Denoiser) -> None:
    """Raises a ValueError if a denoiser has no probability-flow ODE, or the package of the solver is missing."""
    schedule, parametrization = denoiser.schedule, denoiser.parametrization
    if (time := denoiser.network_spec.time) != "log_snr":
        raise InputError(
            f"the exact likelihood needs a network of continuous time, time = 'log_snr', and time = {time!r} "
            "is defined at single timesteps: train with time = 'log_snr'."
        )
    if parametrization.stepwise:
        raise InputError(f"the exact likelihood needs continuous time, and {type(parametrization).__name__} has steps.")
    if schedule.alpha_bar(schedule.num_steps) == 0:
        raise InputError(f"the exact likelihood needs a finite range of log SNR, but SNR(T) is zero in {schedule}.")
    _odeint()


def _odeint() -> Any:
    return import_extra("torchdiffeq", needed_by="the exact likelihood", extra="exact").odeint


def exact_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    decoder: Decoder,
    num_steps: int = FLOW_STEPS,
    seed: int = 0,
    index: Tensor | None = None,
    **cond: Any,
) -> Likelihood:
    """Returns the negative log-likelihood of `x_0` under the probability-flow ODE, in evaluation mode.

    The ODE is solved by torchdiffeq's fourth-order Runge-Kutta method in equal steps of log SNR, so the result does not
    depend on the batch. The trace is Hutchinson's unbiased estimate with one Rademacher vector for each image.

    Args:
        denoiser: The model; its network gets log SNR.
        x_0: The images, ``[B, ...]``.
        decoder: The likelihood at t = 1.
        num_steps: The steps of the solver, with four network calls each.
        seed: The seed of the noise.
        index: The index of each image in its dataset, ``[B]``; counted from 0 if None.
        **cond: Keyword arguments of the network.

    Raises:
        ValueError: If the denoiser has no probability-flow ODE, see `check_flow`.
    """
    check_flow(denoiser)
    decoder.check(x_0)
    schedule, batch = denoiser.schedule, len(x_0)
    last = schedule.num_steps
    with torch.inference_mode(False), evaluating(denoiser):  # inference tensors have no gradients
        clean = to_float64(x_0.clone())
        cond = {key: value.clone() if isinstance(value, Tensor) else value for key, value in cond.items()}
        eps, probe = (noise.to(clean) for noise in _noise(clean, seed, index))
        q_1 = q_marginal(schedule, clean, 1)
        x_1 = q_1.sample(eps)
        estimate = denoiser.estimate(x_1.to(x_0.dtype), 1, **cond)
        x0_hat, position = estimate.x0_hat.to(clean), estimate.log_variance_position
        p = denoiser.p_given_x0_hat(x_1, x0_hat, 1, log_variance_position=position)

        def derivative(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            t = schedule.time_of(-2 * u)
            signal = float(schedule.alpha_bar(t).sqrt())
            with torch.enable_grad():
                y = state[0].detach().requires_grad_()
                x0_hat = denoiser((signal * y).to(x_0.dtype), t, **cond).to(y)
                (product,) = torch.autograd.grad(x0_hat, y, probe)
            trace = (product * probe).flatten(1).sum(1)
            return (state[0] - x0_hat.detach(), x_0[0].numel() - trace)

        u = -schedule.log_snr(torch.tensor([1, last])).to(clean) / 2
        signal = [float(schedule.alpha_bar(t).sqrt()) for t in (1, last)]
        start = (x_1 / signal[0], torch.zeros(batch, dtype=clean.dtype, device=clean.device))
        step_size = float(u[1] - u[0]) / num_steps * (1 + 1e-12)  # rounding must not add a step
        y, divergence = _odeint()(derivative, start, u, method="rk4", options={"step_size": step_size})
        standard_normal = Gaussian(torch.zeros_like(clean), torch.ones_like(clean))
        log_prior = _log_density(GaussianDecoder(), y[-1] * signal[1], standard_normal)
        change_of_scale = x_0[0].numel() * math.log(signal[1] / signal[0])
        return Likelihood(
            flow=-(log_prior + change_of_scale + divergence[-1]).cpu().double(),
            dequantization=_log_density(GaussianDecoder(), x_1, q_1).cpu().double(),
            reconstruction=-_log_density(decoder, clean, p).cpu().double(),
        )


def _noise(x_0: Tensor, seed: int, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns standard normal noise and signs, each of the shape of `x_0`, for images by their index in a dataset."""
    generators = image_generators("likelihood", seed, index, len(x_0))
    eps = torch.stack([torch.randn(x_0.shape[1:], generator=g) for g in generators])
    bits = torch.stack([torch.randint(0, 2, x_0.shape[1:], generator=g) for g in generators])
    return eps, 2 * bits - 1


def _log_density(decoder: Decoder, x: Tensor, p: Gaussian) -> Tensor:
    """Returns the logarithm of a likelihood of each image, ``[B]``."""
    return decoder.log_prob(x, p).flatten(1).sum(1)
