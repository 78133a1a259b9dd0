"""Timestep samplers: the distribution of t in a training batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm._internal.config import Configurable


class TimestepSampler(Configurable, ABC):
    """A distribution over 1..T with the weights that make the batch average an unbiased average over uniform t."""

    uses_losses = False  # whether the distribution depends on past losses, which training then passes to `update`

    @abstractmethod
    def sample(self, batch_size: int, num_steps: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws ``(t, weight)``: int64 ``[B]`` in 1..T and float64 ``[B]`` of expectation 1, both on the CPU."""

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Records the losses of a training batch, gathered from all ranks, both ``[B]`` on the CPU."""

    def reset(self) -> None:
        """Discards what was recorded; called at the start of a fit."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state from `state_dict`."""


@dataclass(eq=False)
class UniformTimesteps(TimestepSampler):
    """Independent uniform draws (Ho et al. 2020, algorithm 1)."""

    @override
    def sample(self, batch_size: int, num_steps: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        t = torch.randint(1, num_steps + 1, (batch_size,), generator=generator)
        return t, torch.ones(batch_size, dtype=torch.float64)


@dataclass(eq=False)
class StratifiedTimesteps(TimestepSampler):
    """One draw from each of B equal strata of time, with a single offset for the batch (Kingma et al. 2021, app. I.1).

    Each t is still uniform on 1..T, and the average over the batch has a lower variance.
    """

    @override
    def sample(self, batch_size: int, num_steps: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        position = (torch.arange(batch_size, dtype=torch.float64) + offset) / batch_size
        t = 1 + (position * num_steps).long().clamp(max=num_steps - 1)
        return t, torch.ones(batch_size, dtype=torch.float64)


@dataclass(eq=False)
class ImportanceTimesteps(TimestepSampler):
    """Draws t in proportion to the root mean square of its recent losses (Nichol and Dhariwal 2021, section 3.3).

    The weights ``1 / (T p(t))`` keep the average unbiased. Until every t has `history` losses, t is uniform.

    Args:
        history: The number of losses that are kept for each t.
        uniform_share: The probability of a uniform draw, so that every t remains possible.
    """

    history: int = 10
    uniform_share: float = 0.001

    uses_losses = True

    def __post_init__(self) -> None:
        """Checks the settings and starts without losses."""
        check_at_least(self, 1, history=self.history)
        if not 0 < self.uniform_share <= 1:
            raise ValueError(f"uniform_share = {self.uniform_share} of ImportanceTimesteps must be in (0, 1].")
        self.reset()

    @override
    def reset(self) -> None:
        self._losses = torch.zeros(0, self.history, dtype=torch.float64)  # a ring buffer for each t
        self._counts = torch.zeros(0, dtype=torch.int64)

    def probabilities(self, num_steps: int) -> Tensor:
        """Returns the probability of each t in 1..T: float64 ``[T]``."""
        uniform = torch.full((num_steps,), 1 / num_steps, dtype=torch.float64)
        if len(self._counts) != num_steps or bool((self._counts < self.history).any()):
            return uniform
        rms = (self._losses**2).mean(1).sqrt()
        return (1 - self.uniform_share) * rms / rms.sum() + self.uniform_share * uniform

    @override
    def sample(self, batch_size: int, num_steps: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        if len(self._counts) != num_steps:
            self._losses = torch.zeros(num_steps, self.history, dtype=torch.float64)
            self._counts = torch.zeros(num_steps, dtype=torch.int64)
        p = self.probabilities(num_steps)
        row = torch.multinomial(p, batch_size, replacement=True, generator=generator)
        return row + 1, 1 / (num_steps * p[row])

    @override
    def update(self, t: Tensor, losses: Tensor) -> None:
        for row, loss in zip((t - 1).tolist(), losses.tolist(), strict=True):
            self._losses[row, int(self._counts[row]) % self.history] = loss
            self._counts[row] += 1

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses, "counts": self._counts}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses, self._counts = state_dict["losses"].clone(), state_dict["counts"].clone()
