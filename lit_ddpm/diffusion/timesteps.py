"""Which timesteps a training batch visits."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_ddpm._internal.config import Configurable


class TimestepSampler(Configurable, ABC):
    """A distribution over 1..T with the weights that keep an average over it an average over uniform t.

    Attributes:
        learns: Whether training has to tell it the losses, see `update`.
    """

    learns = False

    @abstractmethod
    def sample(
        self, batch_size: int, num_steps: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws ``(t, weight)``: int64 ``[B]`` in 1..T and float64 ``[B]`` of expectation 1, both on the CPU."""

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learns from the losses of a training batch of all processes, both ``[B]`` on the CPU."""

    def state_dict(self) -> dict[str, Any]:
        """What it has learnt, for checkpoints."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""


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


class ImportanceTimesteps(TimestepSampler):
    """Draws t in proportion to the root mean square of its last losses (Nichol and Dhariwal 2021, section 3.3).

    The weights ``1 / (T p(t))`` keep the average unbiased. Until every t has been seen often enough, t is uniform.

    Args:
        history: The number of losses that are kept for each t.
        uniform_share: The share of draws that stay uniform, so that no t is forgotten.

    Raises:
        ValueError: If one of them is out of range.
    """

    learns = True

    def __init__(self, history: int = 10, uniform_share: float = 0.001) -> None:
        if history < 1:
            raise ValueError(f"history = {history} of ImportanceTimesteps must be at least 1.")
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share = {uniform_share} of ImportanceTimesteps must be in (0, 1].")
        self.history = history
        self.uniform_share = uniform_share
        self._losses = torch.zeros(0, history, dtype=torch.float64)  # the last ones of each t, a ring
        self._counts = torch.zeros(0, dtype=torch.int64)

    def probabilities(self, num_steps: int) -> Tensor:
        """The probability of each t in 1..T: float64 ``[T]``."""
        uniform = torch.full((num_steps,), 1 / num_steps, dtype=torch.float64)
        if len(self._counts) != num_steps or bool((self._counts < self.history).any()):
            return uniform
        size = (self._losses**2).mean(1).sqrt()
        return (1 - self.uniform_share) * size / size.sum() + self.uniform_share * uniform

    def sample(
        self, batch_size: int, num_steps: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler.sample`."""
        if len(self._counts) != num_steps:
            self._losses = torch.zeros(num_steps, self.history, dtype=torch.float64)
            self._counts = torch.zeros(num_steps, dtype=torch.int64)
        p = self.probabilities(num_steps)
        row = torch.multinomial(p, batch_size, replacement=True, generator=generator)
        return row + 1, 1 / (num_steps * p[row])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """See `TimestepSampler.update`."""
        for row, loss in zip((t - 1).tolist(), losses.tolist(), strict=True):
            self._losses[row, int(self._counts[row]) % self.history] = loss
            self._counts[row] += 1

    def state_dict(self) -> dict[str, Any]:
        """See `TimestepSampler.state_dict`."""
        return {"losses": self._losses, "counts": self._counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `TimestepSampler.load_state_dict`."""
        self._losses, self._counts = state_dict["losses"].clone(), state_dict["counts"].clone()
