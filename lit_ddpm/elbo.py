r"""The variational bound on the negative log-likelihood, term by term.

.. math::
    -\ln p_\theta(x_0) \le \underbrace{KL(q(x_T|x_0) \,\|\, N(0, I))}_{\mathrm{prior}}
      + \underbrace{\sum_{t=2}^T E\, KL(q(x_{t-1}|x_t,x_0) \,\|\, p_\theta(x_{t-1}|x_t))}_{\mathrm{diffusion}}
      + \underbrace{E[-\ln p_\theta(x_0|x_1)]}_{\mathrm{reconstruction}}

(Ho et al. 2020, eq. 5). Each image's noise is a function of (seed, index) alone, so the bound depends neither on the
batch it is computed in nor on the process.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_ddpm.decoder import Decoder
from lit_ddpm.denoiser import Denoiser, evaluating
from lit_ddpm.gaussian import Gaussian, gaussian_kl, q_marginal, q_posterior, to_float64
from lit_ddpm.seeding import keyed_generator

BLOCK = 16  # timesteps whose noise is drawn at once; a part of how noise follows from (seed, index)


@dataclass(frozen=True)
class Bound:
    """The terms of the bound for each image, in nats summed over dimensions, float64 on the CPU.

    Attributes:
        prior: ``KL(q(x_T|x_0) || N(0, I))``, ``[B]``, exact.
        diffusion: The sum of the KL terms over t = 2..T, or its unbiased estimate, ``[B]``.
        reconstruction: ``-log p(x_0|x_1)`` by the decoder, ``[B]``.
        differences: How much the KL terms of neighbouring timesteps differ: the mean over the images for each pair of
            them, scaled as in `diffusion`, ``[num_calls // 2]``, none for two calls. With `squared_differences` it
            tells how much of `diffusion` is noise: see `noise_variance`.
        squared_differences: The sum over the pairs of the mean of the squared difference, a scalar.
        profile: The mean over the images of each KL term, t = 2..T, ``[T - 1]``; it sums to the mean of `diffusion`.
        visits: How many network calls were at t, for t = 1..T, ``[T]``.
        squared_error: The sum over those calls of ``|x0_hat - x_0|^2`` per dimension, ``[T]``.
        dims: The number of dimensions of an image.
        num_calls: The number of network calls an image.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    differences: Tensor
    squared_differences: Tensor
    profile: Tensor
    visits: Tensor
    squared_error: Tensor
    dims: int
    num_calls: int

    @property
    def total(self) -> Tensor:
        """The whole bound, ``[B]``."""
        return self.prior + self.diffusion + self.reconstruction


def noise_variance(differences: Tensor, squared_differences: Tensor, num_images: int) -> float:
    """The variance of one image's `Bound.diffusion` over its noise and its choice of timesteps, in squared nats.

    Neighbouring terms have independent noise, so the variance of their difference over the images is the sum of their
    variances, and somewhat more where images differ in how fast their terms fall (collapsed strata: Cochran 1977,
    section 5A.12). NaN for fewer than two images or two terms.
    """
    if num_images < 2 or not len(differences):
        return math.nan
    spread = float(squared_differences - (differences**2).sum())
    return max(spread, 0.0) * num_images / (num_images - 1)


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Nats for an image of `dims` dimensions as bits per dimension."""
    return nats / (dims * math.log(2))


def variational_bound(
    denoiser: Denoiser,
    x_0: Tensor,
    decoder: Decoder,
    num_timesteps: int | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    **cond: Any,
) -> Bound:
    """The bound of `x_0` under the denoiser, in evaluation mode and without gradients.

    Memory does not grow with T: the network sees all images at one timestep after another.

    Args:
        denoiser: The model.
        x_0: The images, ``[B, ...]``.
        decoder: The likelihood at t = 1.
        num_timesteps: None visits every t. A number K gives an unbiased estimate from K calls an image: t = 1, and one
            t drawn uniformly from each of K - 1 equal shares of 2..T. K = T is the exact sum again.
        seed: The seed of the noise.
        index: Each image's number in its data set, ``[B]``; counted from 0 if None.
        **cond: Passed on to the network.

    Raises:
        ValueError: If `num_timesteps` is not in 2..T, or the images are not data of the decoder's kind, or lie outside
            [-1, 1] although the denoiser clips.
    """
    schedule = denoiser.schedule
    num_kl = schedule.num_steps - 1
    calls = schedule.num_steps if num_timesteps is None else num_timesteps
    if not 2 <= calls <= schedule.num_steps:
        raise ValueError(f"num_timesteps = {num_timesteps} must be in 2..{schedule.num_steps}, or None for all.")
    decoder.check(x_0)
    if denoiser.clip and float(x_0.abs().max()) > 1:
        raise ValueError(
            f"clip = True needs images in [-1, 1]; these reach {float(x_0.abs().max()):g}: set clip to False."
        )
    indices = range(len(x_0)) if index is None else [int(i) for i in index]
    if len(indices) != len(x_0):
        raise ValueError(f"index must hold one number an image, {len(x_0)}, not {len(indices)}.")
    clean = to_float64(x_0)

    diffusion = previous = torch.zeros(len(x_0), dtype=clean.dtype, device=clean.device)
    profile = torch.zeros(num_kl, dtype=clean.dtype, device=clean.device)
    visits = torch.zeros(schedule.num_steps, dtype=clean.dtype, device=clean.device)
    squared_error = torch.zeros_like(visits)
    differences = [diffusion[:0]]
    squared_differences = torch.zeros((), dtype=clean.dtype, device=clean.device)
    with evaluating(denoiser):
        prior = gaussian_kl(
            q_marginal(schedule, clean, schedule.num_steps), Gaussian(torch.zeros_like(clean), torch.ones_like(clean))
        )
        for k, (t, eps) in enumerate(_noised_timesteps(x_0, indices, seed, calls, num_kl)):
            x_t = q_marginal(schedule, clean, t).sample(eps.to(clean))
            estimate = denoiser.estimate(x_t.to(x_0.dtype), t, **cond)
            x0_hat = estimate.x0_hat.to(clean)
            p = denoiser.p_given_x0_hat(x_t, x0_hat, t, fraction=estimate.fraction)
            row = (t - 1).to(x_0.device)
            visits.index_add_(0, row, torch.ones_like(diffusion))
            squared_error.index_add_(0, row, ((x0_hat - clean) ** 2).flatten(1).mean(1))
            if k == 0:  # t = 1
                reconstruction = _per_image(-decoder.log_prob(clean, p))
                continue
            kl = _per_image(gaussian_kl(q_posterior(schedule, x_t, clean, t), p))
            diffusion = diffusion + kl
            profile.index_add_(0, row - 1, kl)
            # Terms 1 and 2, 3 and 4, ...; a last one left over meets the one before it, and counts half.
            if k > 1 and (k % 2 == 0 or k == calls - 1):
                difference = (kl - previous) / (1 if k % 2 == 0 else math.sqrt(2))
                differences.append(difference.mean()[None])
                squared_differences += (difference**2).mean()
            previous = kl
    scale = num_kl / (calls - 1)  # the number of timesteps that each term of an estimate stands for
    return Bound(
        prior=_per_image(prior).double().cpu(),
        diffusion=(diffusion * scale).double().cpu(),
        reconstruction=reconstruction.double().cpu(),
        differences=(torch.cat(differences) * scale).double().cpu(),
        squared_differences=(squared_differences * scale**2).double().cpu(),
        profile=(profile * scale / len(x_0)).double().cpu(),
        visits=visits.double().cpu(),
        squared_error=squared_error.double().cpu(),
        dims=x_0[0].numel(),
        num_calls=calls,
    )


def _noised_timesteps(
    x_0: Tensor, indices: Sequence[int], seed: int, calls: int, num_kl: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields ``(t [B] on the CPU, eps [B, ...])``: t = 1, then one t from each of ``calls - 1`` shares of 2..T."""
    generators = [keyed_generator("bound", seed, index) for index in indices]
    within_share = torch.stack([torch.rand(calls - 1, generator=g, dtype=torch.float64) for g in generators], 1)
    share = torch.arange(calls - 1, dtype=torch.float64)[:, None]
    t = 2 + ((share + within_share) * num_kl / (calls - 1)).long().clamp(max=num_kl - 1)
    t = torch.cat([torch.ones_like(t[:1]), t])
    for start in range(0, calls, BLOCK):
        noise = torch.stack([torch.randn((BLOCK, *x_0.shape[1:]), generator=g) for g in generators], 1)
        for k in range(start, min(start + BLOCK, calls)):
            yield t[k], noise[k - start].to(x_0.device, non_blocking=True)


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)
