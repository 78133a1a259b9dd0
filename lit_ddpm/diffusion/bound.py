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
from torch.nn.functional import interpolate

from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser, evaluating
from lit_ddpm.diffusion.gaussian import Gaussian, gaussian_kl, q_marginal, q_posterior, to_float64

BLOCK = 16  # timesteps whose noise is drawn at once; a part of how noise follows from (seed, index)
KNOTS = 16  # of the density that `expected_size` draws
UNIFORM_SHARE = 0.01  # of the draws by importance, so that every timestep stays possible


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
        second_moment: The mean over the images of each KL term's square, ``[T - 1]``, or its unbiased estimate.
        visits: How many network calls were at t, for t = 1..T, ``[T]``.
        kl: The sum over those calls of the KL term, t = 2..T, ``[T - 1]``.
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
    second_moment: Tensor
    visits: Tensor
    kl: Tensor
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


def expected_size(second_moment: Tensor) -> Tensor:
    """About the root mean square of each KL term, ``[T - 1]``, from an estimate of the mean of its square.

    It is smooth, and the averages it goes through are rounded to powers of the root of 2: what float32 makes of
    another batch size must not move a timestep.
    """
    num_kl = len(second_moment)
    block = torch.arange(num_kl) * min(KNOTS, num_kl) // num_kl
    sums = torch.zeros(int(block[-1]) + 1, dtype=torch.float64).index_add_(0, block, second_moment.double().cpu())
    mean = sums / block.bincount()
    size = 2 ** (mean.clamp(min=1e-30).log2().round() / 2)
    return interpolate(size[None, None], size=num_kl, mode="linear")[0, 0]


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
    second_moment: Tensor | None = None,
    **cond: Any,
) -> Bound:
    """The bound of `x_0` under the denoiser, in evaluation mode and without gradients.

    Memory does not grow with T: the network sees all images at one timestep after another.

    Args:
        denoiser: The model.
        x_0: The images, ``[B, ...]``.
        decoder: The likelihood at t = 1.
        num_timesteps: None visits every t. A number K gives an unbiased estimate from K calls an image: t = 1, and one
            t drawn from each of K - 1 equal shares of 2..T. K = T is the exact sum again.
        seed: The seed of the noise.
        index: Each image's number in its data set, ``[B]``; counted from 0 if None.
        second_moment: `Bound.second_moment` of an earlier bound, ``[T - 1]``, makes an estimate more precise. Then t is
            drawn in proportion to the root (Nichol and Dhariwal 2021, section 3.3), and what a term owes to the length
            of its eps, whose mean is known, is left out (a control variate).
        **cond: Passed on to the network.

    Raises:
        ValueError: If `num_timesteps` is not in 2..T, `second_moment` has not T - 1 entries, or the images are not data
            of the decoder's kind, or lie outside [-1, 1] although the denoiser clips.
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
    if second_moment is not None and len(second_moment) != num_kl:
        raise ValueError(f"second_moment must hold one number for each t = 2..T, {num_kl}, not {len(second_moment)}.")
    clean = to_float64(x_0)
    size, density = torch.zeros(num_kl, dtype=torch.float64), torch.full((num_kl,), 1 / num_kl, dtype=torch.float64)
    if second_moment is not None and calls < schedule.num_steps:
        size = expected_size(second_moment)
        density = (1 - UNIFORM_SHARE) * size / size.sum() + UNIFORM_SHARE * density

    diffusion = previous = torch.zeros(len(x_0), dtype=clean.dtype, device=clean.device)
    profile = torch.zeros(num_kl, dtype=clean.dtype, device=clean.device)
    squares, kl_sums = torch.zeros_like(profile), torch.zeros_like(profile)
    visits = torch.zeros(schedule.num_steps, dtype=clean.dtype, device=clean.device)
    squared_error = torch.zeros_like(visits)
    differences = [diffusion[:0]]
    squared_differences = torch.zeros((), dtype=clean.dtype, device=clean.device)
    with evaluating(denoiser):
        prior = gaussian_kl(
            q_marginal(schedule, clean, schedule.num_steps), Gaussian(torch.zeros_like(clean), torch.ones_like(clean))
        )
        for k, (t, eps) in enumerate(_noised_timesteps(x_0, indices, seed, calls, density)):
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
            weight = 1 / ((calls - 1) * density[t - 2]).to(kl)
            squares.index_add_(0, row - 1, weight * kl**2)
            kl_sums.index_add_(0, row - 1, kl)
            length = (eps.to(kl) ** 2).flatten(1).mean(1) - 1
            kl = weight * (kl - size[t - 2].to(kl) * length)
            diffusion = diffusion + kl
            profile.index_add_(0, row - 1, kl)
            # Terms 1 and 2, 3 and 4, ...; a last one left over meets the one before it, and counts half.
            if k > 1 and (k % 2 == 0 or k == calls - 1):
                difference = (kl - previous) / (1 if k % 2 == 0 else math.sqrt(2))
                differences.append(difference.mean()[None])
                squared_differences += (difference**2).mean()
            previous = kl
    return Bound(
        prior=_per_image(prior).double().cpu(),
        diffusion=diffusion.double().cpu(),
        reconstruction=reconstruction.double().cpu(),
        differences=torch.cat(differences).double().cpu(),
        squared_differences=squared_differences.double().cpu(),
        profile=(profile / len(x_0)).double().cpu(),
        second_moment=(squares / len(x_0)).double().cpu(),
        visits=visits.double().cpu(),
        kl=kl_sums.double().cpu(),
        squared_error=squared_error.double().cpu(),
        dims=x_0[0].numel(),
        num_calls=calls,
    )


def _noised_timesteps(
    x_0: Tensor, indices: Sequence[int], seed: int, calls: int, density: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields ``(t [B] on the CPU, eps [B, ...])``: t = 1, then one from each of ``calls - 1`` shares of a density."""
    generators = [keyed_generator("bound", seed, index) for index in indices]
    within_share = torch.stack([torch.rand(calls - 1, generator=g, dtype=torch.float64) for g in generators], 1)
    share = torch.arange(calls - 1, dtype=torch.float64)[:, None]
    place = (share + within_share) / (calls - 1)
    t = 2 + torch.searchsorted(density.cumsum(0), place, right=True).clamp(max=len(density) - 1)
    t = torch.cat([torch.ones_like(t[:1]), t])
    for start in range(0, calls, BLOCK):
        noise = torch.stack([torch.randn((BLOCK, *x_0.shape[1:]), generator=g) for g in generators], 1)
        for k in range(start, min(start + BLOCK, calls)):
            yield t[k], noise[k - start].to(x_0.device, non_blocking=True)


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)
