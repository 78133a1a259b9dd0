"""Which timesteps a training batch visits."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_ddpm.configurable import Configurable


class TimestepSampler(Configurable, ABC):
    """A distribution over 1..T with the weights that keep an average over it an average over uniform t."""

    @abstractmethod
    def sample(
        self, batch_size: int, num_steps: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws ``(t, weight)``: int64 ``[B]`` in 1..T and float64 ``[B]`` of expectation 1, both on the CPU."""


class UniformTimesteps(TimestepSampler):
    """Independent draws (Ho et al. 2020, algorithm 1)."""

    def sample(
        self, batch_size: int, num_steps: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler.sample`."""
        t = torch.randint(1, num_steps + 1, (batch_size,), generator=generator)
        return t, torch.ones(batch_size, dtype=torch.float64)


class StratifiedTimesteps(TimestepSampler):
    """One draw from each of B equal shares of time, with one offset for the batch (Kingma et al. 2021, appendix I.1).

    Each t is still uniform on 1..T, and the average over the batch varies less.
    """

    def sample(
        self, batch_size: int, num_steps: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler.sample`."""
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        share = (torch.arange(batch_size, dtype=torch.float64) + offset) / batch_size
        t = 1 + (share * num_steps).long().clamp(max=num_steps - 1)
        return t, torch.ones(batch_size, dtype=torch.float64)
