"""The variational bound on the negative log-likelihood, term by term.

    -ln p_theta(x_0) <= KL(q(x_T|x_0) || N(0, I))                                            prior
                        + sum_{t=2..T} E KL(q(x_{t-1}|x_t,x_0) || p_theta(x_{t-1}|x_t))      diffusion
                        + E[-ln p_theta(x_0|x_1)]                                            reconstruction

(Ho et al. 2020, eq. 5). The noise of an image is a function of (seed, index), so the bound does not depend on the batch
or the rank that computes it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.device import page_locked, to_device
from lit_ddpm._internal.random import image_generators
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser, evaluating
from lit_ddpm.diffusion.gaussian import Gaussian, gaussian_kl, q_marginal, q_posterior, to_float64
from lit_ddpm.diffusion.timesteps import importance_density
from lit_ddpm.diffusion.weighting import kl_weight
from lit_ddpm.likelihood.bound import DECODER_SCALES, Bound

BLOCK = 16  # timesteps per call of the generator; the noise of (seed, index) depends on it
KNOTS = 16  # averages that `smooth_rms` interpolates
UNIFORM_SHARE = 0.01  # probability of a uniform draw, so that every timestep remains possible


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
    """Returns the bound of `x_0` under the denoiser, in evaluation mode and without gradients.

    The network is called once for each timestep with all images, so the memory of activations does not grow with T.

    Args:
        denoiser: The model.
        x_0: The images, ``[B, ...]``.
        decoder: The likelihood at t = 1.
        num_timesteps: None evaluates every t. A number K gives an unbiased estimate from K calls for each image: t = 1,
            and one t from each of K - 1 equal strata of 2..T. K = T is the exact sum.
        seed: The seed of the noise.
        index: The index of each image in its dataset, ``[B]``; counted from 0 if None.
        second_moment: `Bound.second_moment` of an earlier bound, ``[T - 1]``; it reduces the variance of an estimate.
            Then t is drawn in proportion to the root mean square of the KL terms (Nichol and Dhariwal 2021, section
            3.3), with the squared norm of eps as a control variate.
        **cond: Keyword arguments of the network.
    """
    num_steps = denoiser.schedule.num_steps
    num_calls = num_steps if num_timesteps is None else num_timesteps
    if not 2 <= num_calls <= num_steps:
        raise InputError(f"num_timesteps = {num_timesteps} must be in 2..{num_steps}, or None for all T.")
    decoder.check(x_0)
    if denoiser.clip and (largest := float(x_0.abs().max())) > 1:
        raise InputError(f"clip = True needs images in [-1, 1]; these reach {largest:g}: set clip to False.")
    generators = image_generators("bound", seed, index, len(x_0))
    num_kl = num_steps - 1
    if second_moment is not None and len(second_moment) != num_kl:
        raise ValueError(f"second_moment must have one value for each t = 2..T, {num_kl}, not {len(second_moment)}.")
    density = torch.full((num_kl,), 1 / num_kl, dtype=torch.float64)
    rms = torch.zeros_like(density)
    if second_moment is not None and num_calls < num_steps:
        rms = smooth_rms(second_moment)
        density = importance_density(rms, UNIFORM_SHARE)
    draws = _draws(x_0, generators, num_calls, density)
    terms = _evaluate(denoiser, x_0, decoder, draws, cond)
    weight = kl_weight(denoiser.schedule, torch.arange(1, num_steps + 1))
    return Bound(
        index=torch.arange(len(x_0)) if index is None else index.cpu(),
        dims=x_0[0].numel(),
        num_calls=num_calls,
        discrete=decoder.levels is not None,
        kl_weight=weight,
        conditioned_on=tuple(cond),
        **_reduce(terms, rms, density),
    )


class _Terms(NamedTuple):
    """The results of the K network calls, float64 on the CPU; row k is call k, and call 0 has t = 1."""

    prior: Tensor  # [B]
    reconstruction: Tensor  # [B]
    reconstruction_by_scale: Tensor
    t: Tensor  # int64 [K, B]
    squared_error: Tensor  # [K, B], mean of |x0_hat - x_0|^2 over the dimensions
    kl: Tensor  # [K - 1, B], the KL at t[1:]
    excess_noise: Tensor  # [K - 1, B], mean of eps^2 over the dimensions, minus its expectation 1


def _evaluate(
    denoiser: Denoiser, x_0: Tensor, decoder: Decoder, draws: Iterable[tuple[Tensor, Tensor]], cond: dict[str, Any]
) -> _Terms:
    """Calls the network once for each of the `draws` of t and eps."""
    schedule, clean = denoiser.schedule, to_float64(x_0)
    found: dict[str, list[Tensor]] = {}

    def keep(**values: Tensor) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    with evaluating(denoiser):
        standard_normal = Gaussian(torch.zeros_like(clean), torch.ones_like(clean))
        keep(prior=_per_image(gaussian_kl(q_marginal(schedule, clean, schedule.num_steps), standard_normal)))
        for t, noise in draws:
            eps = to_device(noise, x_0.device).to(clean)
            x_t = q_marginal(schedule, clean, t).sample(eps)
            estimate = denoiser.estimate(x_t.to(x_0.dtype), t, **cond)
            x0_hat = estimate.x0_hat.to(clean)
            p = denoiser.p_given_x0_hat(x_t, x0_hat, t, log_variance_position=estimate.log_variance_position)
            keep(t=t, squared_error=((x0_hat - clean) ** 2).flatten(1).mean(1))
            if bool((t == 1).all()):
                variances = (schedule.beta(1) * DECODER_SCALES).to(clean)
                scaled = [-decoder.log_prob(clean, Gaussian(x0_hat, variance)).sum() for variance in variances]
                keep(
                    reconstruction=_per_image(-decoder.log_prob(clean, p)), reconstruction_by_scale=torch.stack(scaled)
                )
            else:
                keep(kl=_per_image(gaussian_kl(q_posterior(schedule, x_t, clean, t), p)))
                keep(excess_noise=(eps**2).flatten(1).mean(1) - 1)
    single = ("prior", "reconstruction", "reconstruction_by_scale")
    stacked = {name: torch.stack(values).cpu() for name, values in found.items()}
    return _Terms(t=stacked.pop("t"), **{name: (x[0] if name in single else x).double() for name, x in stacked.items()})


def _reduce(terms: _Terms, rms: Tensor, density: Tensor) -> dict[str, Any]:
    """Returns the rows and sums of a `Bound` from the arrays of all network calls."""
    num_kl, num_terms = len(density), len(terms.kl)
    column = terms.t[1:] - 2
    weight = 1 / (num_terms * density[column])
    weighted = weight * (terms.kl - rms[column] * terms.excess_noise)  # the control variate has mean 0

    def sum_by_timestep(values: Tensor, first_t: int) -> Tensor:
        t = terms.t[-len(values) :] - first_t
        return torch.zeros(num_kl + 2 - first_t, dtype=torch.float64).index_add_(0, t.flatten(), values.flatten())

    # Terms 0 and 1, 2 and 3, ...; a last one without a partner is paired with its predecessor and counts half.
    differences = weighted[1::2] - weighted[: num_terms - 1 : 2]
    if num_terms % 2 and num_terms > 1:
        differences = torch.cat([differences, (weighted[-1:] - weighted[-2:-1]) / math.sqrt(2)])
    return {
        "prior": terms.prior,
        "diffusion": weighted.sum(0),
        "reconstruction": terms.reconstruction,
        "differences": differences.sum(1),
        "squared_differences": (differences**2).sum(),
        "diffusion_by_t": sum_by_timestep(weighted, 2),
        "squared_diffusion_by_t": sum_by_timestep(weight * terms.kl**2, 2),
        "reconstruction_by_scale": terms.reconstruction_by_scale,
        "visits": sum_by_timestep(torch.ones_like(terms.squared_error), 1),
        "kl": sum_by_timestep(terms.kl, 2),
        "squared_error": sum_by_timestep(terms.squared_error, 1),
    }


def _draws(
    x_0: Tensor, generators: Sequence[Generator], num_calls: int, density: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields t, int64 ``[B]`` on the CPU, and eps ``[B, ...]``: t = 1, then one t from each stratum of a density."""
    uniform = torch.stack([torch.rand(num_calls - 1, generator=g, dtype=torch.float64) for g in generators], 1)
    stratum = torch.arange(num_calls - 1, dtype=torch.float64)[:, None]
    quantile = (stratum + uniform) / (num_calls - 1)
    t = 2 + torch.searchsorted(density.cumsum(0), quantile, right=True).clamp(max=len(density) - 1)
    t = torch.cat([torch.ones_like(t[:1]), t])
    for start in range(0, num_calls, BLOCK):
        noise = torch.stack([torch.randn((BLOCK, *x_0.shape[1:]), generator=g) for g in generators], 1)
        noise = page_locked(noise, x_0.device)
        yield from ((t[k], noise[k - start]) for k in range(start, min(start + BLOCK, num_calls)))


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def smooth_rms(second_moment: Tensor) -> Tensor:
    """Returns a smooth estimate of the root mean square of each KL term, ``[T - 1]``, from its second moment.

    It interpolates averages that are rounded to powers of sqrt(2), so that the float32 rounding of another batch size
    does not move a timestep.
    """
    num_kl = len(second_moment)
    block = torch.arange(num_kl) * min(KNOTS, num_kl) // num_kl
    sums = torch.zeros(int(block[-1]) + 1, dtype=torch.float64).index_add_(0, block, second_moment.cpu().double())
    mean = sums / block.bincount()
    knots = 2 ** (mean.clamp(min=1e-30).log2().round() / 2)
    return interpolate(knots[None, None], size=num_kl, mode="linear")[0, 0]
