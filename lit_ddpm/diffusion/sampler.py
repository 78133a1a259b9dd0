"""Samplers: reverse steps from noise to images."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least
from lit_ddpm._internal.config import Configurable
from lit_ddpm._internal.device import page_locked, to_device
from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.diffusion.denoiser import Denoiser, evaluating
from lit_ddpm.diffusion.gaussian import posterior_coefficients
from lit_ddpm.diffusion.network import is_per_image
from lit_ddpm.diffusion.schedule import Schedule


class Sampler(Configurable, ABC):
    """The loop from x_T to x_0; a subclass implements one `step`.

    Images are drawn in whole chunks of `chunk_size`, and all noise of a chunk is a function of (seed, chunk index). So
    image i is the same in every request, batch and rank.

    Args:
        num_steps: The number of reverse steps; all T of the schedule if None.
        chunk_size: The images of a chunk. Another size gives other images.
    """

    num_steps: int | None
    chunk_size: int

    def __init__(self, num_steps: int | None = None, chunk_size: int = 64) -> None:
        self.num_steps = num_steps
        self.chunk_size = chunk_size
        self.__post_init__()

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_at_least(self, 1, num_steps=self.num_steps, chunk_size=self.chunk_size)

    @abstractmethod
    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, generator: torch.Generator, **cond: Any) -> Tensor:
        """Returns x_s at ``s < t`` from `x_t` ``[B, ...]``; noise is drawn by `standard_normal`.

        A multistep method overrides `trajectory`, whose local variables keep the previous estimates.
        """

    def timesteps(self, schedule: Schedule) -> list[int]:
        """Returns the timesteps of a trajectory from T down to 0, evenly spaced."""
        T = schedule.num_steps
        num_steps = T if self.num_steps is None else self.num_steps
        if num_steps > T:
            raise InputError(f"num_steps = {num_steps} of {type(self).__name__} must be at most the schedule's {T}.")
        grid = torch.linspace(T, 0, num_steps + 1, dtype=torch.float64)
        return [int(t) for t in grid.round()]

    def trajectory(
        self, denoiser: Denoiser, x_T: Tensor, generator: torch.Generator, **cond: Any
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields ``(s, x_s)`` for every timestep of a trajectory, from ``(T, x_T)`` to ``(0, x_0)``."""
        x, timesteps = x_T, self.timesteps(denoiser.schedule)
        yield timesteps[0], x
        for t, s in pairwise(timesteps):
            x = self.step(denoiser, x, t, s, generator, **cond)
            yield s, x

    def __call__(
        self, denoiser: Denoiser, shape: Sequence[int], seed: int = 0, first_index: int = 0, **cond: Any
    ) -> Tensor:
        """Draws the images `first_index` to ``first_index + B - 1`` of a seed, for a `shape` of ``(B, ...)``.

        The denoiser runs in evaluation mode and without gradients, and the images are on its device; they are clipped
        only if it clips. A tensor of length B in `cond` has one entry for each image.
        """
        count, image_shape = shape[0], tuple(shape[1:])
        device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))

        def draw(chunk: int) -> Tensor:
            generator = keyed_generator("sample", seed, chunk)
            # The condition of each image of the chunk; images outside the request take the nearest one.
            entry = torch.arange(self.chunk_size) + chunk * self.chunk_size - first_index
            chunk_cond = {
                key: value[entry.clamp(0, count - 1).to(value.device)] if is_per_image(value, count) else value
                for key, value in cond.items()
            }
            x_T = standard_normal((self.chunk_size, *image_shape), generator, device)
            last = deque(self.trajectory(denoiser, x_T, generator, **chunk_cond), maxlen=1)
            return last[0][1][((entry >= 0) & (entry < count)).to(device)]

        chunks = range(first_index // self.chunk_size, -(-(first_index + count) // self.chunk_size))
        with evaluating(denoiser):
            images = [draw(chunk) for chunk in chunks]
        return torch.cat(images) if images else torch.zeros(tuple(shape), device=device)


@dataclass(eq=False)
class AncestralSampler(Sampler):
    """Draws x_s from ``p_theta(x_s|x_t)``; the last step returns the mean (Ho et al. 2020, algorithm 2).

    With fewer steps than T the posterior is that of the strided process, so one formula serves any number of steps.
    """

    num_steps: int | None = None
    chunk_size: int = 64

    @override
    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, generator: torch.Generator, **cond: Any) -> Tensor:
        p = denoiser.p_posterior(x_t, t, s, **cond)
        return p.sample(standard_normal(x_t.shape, generator, x_t.device)) if s > 0 else p.mean


@dataclass(eq=False)
class DDIMSampler(Sampler):
    """DDIM: non-Markovian steps with a fraction of the ancestral noise (Song et al. 2021, eq. 12).

    x_s is ``sqrt(alpha_bar_s) x0_hat``, plus the estimated noise of x_t rescaled, plus new noise of variance
    ``eta^2 sigma_q^2``.

    Args:
        eta: 0 is deterministic; 1 is the ancestral sampler with the posterior variance.
    """

    num_steps: int | None = None
    eta: float = 0.0
    chunk_size: int = 64

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta = {self.eta} of DDIMSampler must be in [0, 1].")

    @override
    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, generator: torch.Generator, **cond: Any) -> Tensor:
        schedule = denoiser.schedule
        x0_hat: Tensor = denoiser(x_t, t, **cond)
        variance = self.eta**2 * posterior_coefficients(schedule, t, s).var
        kept = ((schedule.one_minus_alpha_bar(s) - variance) / schedule.one_minus_alpha_bar(t)).sqrt()
        x0_weight = schedule.alpha_bar(s).sqrt() - kept * schedule.alpha_bar(t).sqrt()
        x_s = float(x0_weight) * x0_hat + float(kept) * x_t
        if variance > 0:
            x_s = x_s + float(variance.sqrt()) * standard_normal(x_t.shape, generator, x_t.device).to(x_s.dtype)
        return x_s


@dataclass(eq=False)
class DPMSolverSampler(Sampler):
    """DPM-Solver++(2M): a second-order multistep solver of the deterministic process (Lu et al. 2022, algorithm 2).

    One network call a step; the first step and the last, to t = 0, are of first order.
    """

    num_steps: int | None = None
    chunk_size: int = 64

    @override
    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, generator: torch.Generator, **cond: Any) -> Tensor:
        return _dpm_step(denoiser.schedule, x_t, denoiser(x_t, t, **cond), t, s)

    @override
    def trajectory(
        self, denoiser: Denoiser, x_T: Tensor, generator: torch.Generator, **cond: Any
    ) -> Iterator[tuple[int, Tensor]]:
        x, timesteps, half_log_snr = x_T, self.timesteps(denoiser.schedule), _half_log_snr(denoiser.schedule)
        yield timesteps[0], x
        previous: tuple[Tensor, int] | None = None  # x0_hat of the previous step, and its timestep
        for t, s in pairwise(timesteps):
            x0_hat: Tensor = denoiser(x, t, **cond)
            estimate = x0_hat
            if previous is not None and s > 0:
                x0_previous, t_previous = previous
                ratio = (half_log_snr[s] - half_log_snr[t]) / (2 * (half_log_snr[t] - half_log_snr[t_previous]))
                estimate = x0_hat + float(ratio) * (x0_hat - x0_previous)
            previous = x0_hat, t
            x = _dpm_step(denoiser.schedule, x, estimate, t, s)
            yield s, x


def _half_log_snr(schedule: Schedule) -> Tensor:
    """Returns half of log SNR at t = 0..T, ``[T + 1]``; infinity at t = 0."""
    t = torch.arange(schedule.num_steps + 1)
    return schedule.alpha_bar(t).sqrt().log() - schedule.one_minus_alpha_bar(t).sqrt().log()


def _dpm_step(schedule: Schedule, x_t: Tensor, estimate: Tensor, t: int, s: int) -> Tensor:
    """Returns x_s of the deterministic process for an estimate of x_0."""
    kept = schedule.one_minus_alpha_bar(s).sqrt() / schedule.one_minus_alpha_bar(t).sqrt()
    return float(kept) * x_t + float(schedule.alpha_bar(s).sqrt() - kept * schedule.alpha_bar(t).sqrt()) * estimate


def standard_normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Draws standard normal noise on the CPU, at least float32, and moves it to `device`."""
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    noise = torch.randn(tuple(shape), generator=generator, dtype=dtype)
    return to_device(page_locked(noise, device), device)
