"""Samplers: how noise becomes images, one reverse step after another."""

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lit_ddpm._internal.config import Configurable
from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.diffusion.denoiser import Denoiser, evaluating
from lit_ddpm.diffusion.gaussian import posterior_coefficients
from lit_ddpm.diffusion.schedule import Schedule


class Sampler(Configurable, ABC):
    """The loop from x_T to x_0; a subclass implements one `step`.

    Images are made in whole chunks of `chunk_size`, and all noise of a chunk follows from (seed, chunk number). So
    image number i is the same whichever others are asked for with it, in whichever batch and on whichever process.

    Args:
        num_steps: The number of reverse steps; all T of the schedule if None.
        chunk_size: The images of a chunk. A part of what defines an image: another size makes other images.

    Raises:
        ValueError: If either number is less than 1.
    """

    def __init__(self, num_steps: int | None = None, chunk_size: int = 64) -> None:
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps = {num_steps}: a sampler needs at least one step, or None for all.")
        if chunk_size < 1:
            raise ValueError(f"chunk_size = {chunk_size}: a sampler needs at least one image a chunk.")
        self.num_steps = num_steps
        self.chunk_size = chunk_size

    @abstractmethod
    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, generator: torch.Generator, **cond: Any) -> Tensor:
        """Goes from `x_t` ``[B, ...]`` at t to x_s at ``s < t``; noise comes from `standard_normal`.

        A trajectory has a copy of the sampler to itself, so a step may leave on ``self`` what the next one needs.
        """

    def timesteps(self, schedule: Schedule) -> list[int]:
        """The timesteps visited, from T down to 0, evenly spaced.

        Raises:
            ValueError: If the sampler has more steps than the schedule.
        """
        num_steps = schedule.num_steps if self.num_steps is None else self.num_steps
        if num_steps > schedule.num_steps:
            raise ValueError(
                f"num_steps = {num_steps} of {type(self).__name__} must be at most the schedule's {schedule.num_steps}."
            )
        grid = torch.linspace(schedule.num_steps, 0, num_steps + 1, dtype=torch.float64)
        return [int(t) for t in grid.round()]

    def trajectory(
        self, denoiser: Denoiser, x_T: Tensor, generator: torch.Generator, **cond: Any
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields ``(s, x_s)`` for every timestep visited, from ``(T, x_T)`` to ``(0, x_0)``."""
        x, sampler = x_T, copy.copy(self)
        visited = self.timesteps(denoiser.schedule)
        yield visited[0], x
        for t, s in pairwise(visited):
            x = sampler.step(denoiser, x, t, s, generator, **cond)
            yield s, x

    def __call__(
        self, denoiser: Denoiser, shape: Sequence[int], seed: int = 0, first_index: int = 0, **cond: Any
    ) -> Tensor:
        """Makes images number `first_index` to ``first_index + shape[0] - 1`` of a seed.

        Args:
            denoiser: The model; it is run in evaluation mode and without gradients.
            shape: The shape of the result, ``(B, ...)``.
            seed: The seed of the noise.
            first_index: The number of the first image.
            **cond: Passed on to the network; a tensor whose length is B is taken to hold one entry an image.

        Returns:
            The images, ``[B, ...]``, on the device of the denoiser; not clipped unless the denoiser clips.
        """
        count, image_shape = shape[0], tuple(shape[1:])
        device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
        images = []
        with evaluating(denoiser):
            for chunk in range(first_index // self.chunk_size, -(-(first_index + count) // self.chunk_size)):
                generator = keyed_generator("sample", seed, chunk)
                # The entry of the condition for each image of the chunk, the nearest one for images not asked for.
                entry = torch.arange(self.chunk_size) + chunk * self.chunk_size - first_index
                chunk_cond = {
                    key: value[entry.clamp(0, count - 1).to(value.device)]
                    if isinstance(value, Tensor) and value.ndim and len(value) == count
                    else value
                    for key, value in cond.items()
                }
                x_T = standard_normal((self.chunk_size, *image_shape), generator, device)
                last = deque(self.trajectory(denoiser, x_T, generator, **chunk_cond), maxlen=1)
                images.append(last[0][1][((entry >= 0) & (entry < count)).to(device)])
        return torch.cat(images) if images else torch.zeros(tuple(shape), device=device)


class AncestralSampler(Sampler):
    """Draws x_s from ``p_theta(x_s|x_t)``, and returns the mean at the last step (Ho et al. 2020, algorithm 2).

    With fewer steps than T the posterior is the true one between the timesteps visited, so all T steps and the
    respaced process obey one formula.
    """

    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, generator: torch.Generator, **cond: Any) -> Tensor:
        """See `Sampler.step`."""
        p = denoiser.p_posterior(x_t, t, s, **cond)
        return p.sample(standard_normal(x_t.shape, generator, x_t.device)) if s > 0 else p.mean


class DDIMSampler(Sampler):
    """Non-Markovian steps with a share of the ancestral noise (Song et al. 2021, "DDIM", eq. 12).

    x_s is ``sqrt(alpha_bar_s) x0_hat`` plus the noise that x0_hat leaves in x_t, rescaled, plus fresh noise of variance
    ``eta^2 sigma_q^2``.

    Args:
        num_steps: See `Sampler`.
        eta: 0 is deterministic; 1 is the ancestral sampler with the posterior variance.
        chunk_size: See `Sampler`.

    Raises:
        ValueError: If eta is not in [0, 1].
    """

    def __init__(self, num_steps: int | None = None, eta: float = 0.0, chunk_size: int = 64) -> None:
        super().__init__(num_steps, chunk_size)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta = {eta} of DDIMSampler must be in [0, 1].")
        self.eta = eta

    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, generator: torch.Generator, **cond: Any) -> Tensor:
        """See `Sampler.step`."""
        schedule = denoiser.schedule
        x0_hat: Tensor = denoiser(x_t, t, **cond)
        variance = self.eta**2 * posterior_coefficients(schedule, t, s).var
        kept = ((schedule.one_minus_alpha_bar(s) - variance) / schedule.one_minus_alpha_bar(t)).sqrt()
        of_x0 = schedule.alpha_bar(s).sqrt() - kept * schedule.alpha_bar(t).sqrt()
        x_s = float(of_x0) * x0_hat + float(kept) * x_t
        if variance > 0:
            x_s = x_s + float(variance.sqrt()) * standard_normal(x_t.shape, generator, x_t.device).to(x_s.dtype)
        return x_s


class DPMSolverSampler(Sampler):
    """DPM-Solver++(2M): a second-order multistep solver of the deterministic process (Lu et al. 2022, algorithm 2).

    One network call a step; the first step and the last, to t = 0, are of first order.
    """

    _before: tuple[Tensor, Tensor] | None = None  # x0_hat of the step before, and its half log-SNR

    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, generator: torch.Generator, **cond: Any) -> Tensor:
        """See `Sampler.step`."""
        schedule = denoiser.schedule
        signal_t, signal_s = schedule.alpha_bar(t).sqrt(), schedule.alpha_bar(s).sqrt()
        noise_t, noise_s = schedule.one_minus_alpha_bar(t).sqrt(), schedule.one_minus_alpha_bar(s).sqrt()
        lambda_t, lambda_s = signal_t.log() - noise_t.log(), signal_s.log() - noise_s.log()
        x0_hat: Tensor = denoiser(x_t, t, **cond)
        estimate = x0_hat
        if self._before is not None and s > 0:
            x0_before, lambda_before = self._before
            ahead = (lambda_s - lambda_t) / (2 * (lambda_t - lambda_before))
            estimate = x0_hat + float(ahead) * (x0_hat - x0_before)
        self._before = (x0_hat, lambda_t)
        kept = noise_s / noise_t
        return float(kept) * x_t + float(signal_s - kept * signal_t) * estimate


def standard_normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise drawn on the CPU, at least float32, and moved to `device`."""
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return torch.randn(tuple(shape), generator=generator, dtype=dtype).to(device, non_blocking=True)
