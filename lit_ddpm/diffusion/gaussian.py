"""The Gaussians: the forward marginal, the true posterior and the KL divergence of two normal distributions.

With ``s < t`` (``s = t - 1`` unless a sampler strides) and ``alpha_t = alpha_bar_t / alpha_bar_s``,

    q(x_s | x_t, x_0) = N(c_t x_t + c_0 x_0, sigma_q^2 I)
    c_t = (1 - alpha_bar_s) sqrt(alpha_t) / (1 - alpha_bar_t)
    c_0 = (1 - alpha_t) sqrt(alpha_bar_s) / (1 - alpha_bar_t)
    sigma_q^2 = (1 - alpha_t) (1 - alpha_bar_s) / (1 - alpha_bar_t)
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_ddpm.diffusion.schedule import Schedule, check_timesteps, expand_like


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution with independent components."""

    mean: Tensor  # [B, ...]
    var: Tensor  # of a shape that broadcasts against the mean

    def sample(self, noise: Tensor) -> Tensor:
        """Returns ``mean + sqrt(var) * noise`` for standard normal `noise` of the shape of the mean."""
        return self.mean + self.var.sqrt() * noise


def gaussian_kl(q: Gaussian, p: Gaussian) -> Tensor:
    """Returns ``KL(q || p)`` for each component, in nats.

    ``(r - 1 - ln r + (mu_p - mu_q)^2 / sigma_p^2) / 2`` with ``r = sigma_q^2 / sigma_p^2``, which must be positive.
    """
    ratio = q.var / p.var
    return 0.5 * (ratio - 1 - ratio.log() + (p.mean - q.mean) ** 2 / p.var)


def q_marginal(schedule: Schedule, x_0: Tensor, t: int | Tensor) -> Gaussian:
    """Returns ``q(x_t|x_0)`` for `x_0` ``[B, ...]`` and t in 0..T, an int or one value a sample."""
    log_alpha_bar = schedule.log_alpha_bar(t)
    return Gaussian(expand_like(torch.exp(log_alpha_bar / 2), x_0) * x_0, expand_like(-torch.expm1(log_alpha_bar), x_0))


def marginal_variance(schedule: Schedule, t: int | Tensor, sigma_data: float) -> Tensor:
    """Returns the variance of x_t for data of mean 0 and standard deviation `sigma_data`, float64 of the shape of t."""
    return sigma_data**2 * schedule.alpha_bar(t) + schedule.one_minus_alpha_bar(t)


class PosteriorCoefficients(NamedTuple):
    """The coefficients of ``q(x_s|x_t,x_0)``, float64 of the shape of t."""

    c_t: Tensor  # weight of x_t in the mean
    c_0: Tensor  # weight of x_0 in the mean
    var: Tensor  # sigma_q^2; 0 where s = 0
    beta: Tensor  # 1 - alpha_t, the variance of the forward step from s to t


def posterior_coefficients(schedule: Schedule, t: int | Tensor, s: int | Tensor | None = None) -> PosteriorCoefficients:
    """Returns the coefficients of ``q(x_s|x_t,x_0)`` for t in 1..T and ``0 <= s < t`` (``s = t - 1`` if None).

    Both may be real numbers in [1, T].
    """
    t = check_timesteps(t, 1, schedule.num_steps, real=True)
    s = t - 1 if s is None else check_timesteps(s, 0, schedule.num_steps - 1, name="s", real=True)
    if not bool((s < t).all()):
        raise ValueError("s must lie before t: a reverse step goes from t to an earlier s.")
    log_bar_t, log_bar_s = schedule.log_alpha_bar(t), schedule.log_alpha_bar(s)
    log_alpha = log_bar_t - log_bar_s
    beta, noise_t, noise_s = -torch.expm1(log_alpha), -torch.expm1(log_bar_t), -torch.expm1(log_bar_s)
    return PosteriorCoefficients(
        c_t=noise_s * torch.exp(log_alpha / 2) / noise_t,
        c_0=beta * torch.exp(log_bar_s / 2) / noise_t,
        var=beta * noise_s / noise_t,
        beta=beta,
    )


def q_posterior(
    schedule: Schedule, x_t: Tensor, x_0: Tensor, t: int | Tensor, s: int | Tensor | None = None
) -> Gaussian:
    """Returns the true posterior ``q(x_s|x_t,x_0)``, with mean mu_q and variance sigma_q^2 (Ho et al. 2020, eqs. 6, 7).

    The images are ``[B, ...]``; t is an int or ``[B]`` in 1..T, and s is ``t - 1`` if None. The variance is 0 at s = 0.
    """
    c = posterior_coefficients(schedule, t, s)
    return Gaussian(expand_like(c.c_t, x_t) * x_t + expand_like(c.c_0, x_t) * x_0, expand_like(c.var, x_t))


def to_float64(x: Tensor) -> Tensor:
    """Returns `x` in float64, or in float32 on a device without float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
