"""Samplers: how noise becomes images, one reverse step after another."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lit_ddpm.configurable import Configurable
from lit_ddpm.denoiser import Denoiser, evaluating
from lit_ddpm.schedule import Schedule
from lit_ddpm.seeding import keyed_generator


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
        """Goes from `x_t` ``[B, ...]`` at t to x_s at ``s < t``; noise comes from `standard_normal`."""

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
        x = x_T
        visited = self.timesteps(denoiser.schedule)
        yield visited[0], x
        for t, s in pairwise(visited):
            x = self.step(denoiser, x, t, s, generator, **cond)
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


def standard_normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise drawn on the CPU, at least float32, and moved to `device`."""
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return torch.randn(tuple(shape), generator=generator, dtype=dtype).to(device, non_blocking=True)
