"""Timestep samplers: the distribution of t in a training batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least
from lit_ddpm._internal.config import Configurable


class TimestepSampler(Configurable, ABC):
    """A distribution over 1..T with the weights that make the batch average an unbiased average over uniform t."""

    uses_losses = False  # whether the distribution depends on past losses, which training then passes to `update`
    continuous = False  # whether t is a real number in [1, T]

    @abstractmethod
    def sample(self, batch_size: int, num_steps: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws ``(t, weight)``: t ``[B]`` in 1..T, int64 or, if `continuous`, float64, and float64 weights ``[B]``.

        Both are on the CPU; the expectation of a weight is 1.
        """

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Records the losses of a training batch, gathered from all ranks, both ``[B]`` on the CPU."""

    def reset(self) -> None:
        """Discards what was recorded; called at the start of a fit."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state from `state_dict`."""


def importance_density(rms: Tensor, uniform_share: float) -> Tensor:
    """Returns probabilities in proportion to `rms`, except for a share that is uniform; of the shape of `rms`."""
    uniform = torch.full_like(rms, 1 / len(rms))
    return (1 - uniform_share) * rms / rms.sum() + uniform_share * uniform


def _strata(batch_size: int, generator: Generator | None) -> Tensor:
    """Draws one number from each of B equal strata of [0, 1), with a single offset: float64 ``[B]``."""
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    return (torch.arange(batch_size, dtype=torch.float64) + offset) / batch_size


def _check_share(owner: TimestepSampler, uniform_share: float) -> None:
    if not 0 < uniform_share <= 1:
        raise InputError(f"uniform_share = {uniform_share} of {type(owner).__name__} must be in (0, 1].")


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
        t = 1 + (_strata(batch_size, generator) * num_steps).long().clamp(max=num_steps - 1)
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
        _check_share(self, self.uniform_share)
        self.reset()

    @override
    def reset(self) -> None:
        self._losses = torch.zeros(0, self.history, dtype=torch.float64)  # a ring buffer for each t
        self._counts = torch.zeros(0, dtype=torch.int64)

    def probabilities(self, num_steps: int) -> Tensor:
        """Returns the probability of each t in 1..T: float64 ``[T]``."""
        if len(self._counts) != num_steps or bool((self._counts < self.history).any()):
            return torch.full((num_steps,), 1 / num_steps, dtype=torch.float64)
        return importance_density((self._losses**2).mean(1).sqrt(), self.uniform_share)

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


@dataclass(eq=False)
class AdaptiveTimesteps(TimestepSampler):
    """One draw from each of B strata of a density that follows the losses.

    The density is proportional to the root mean square of the recent losses in equal blocks of time, as that of
    `ImportanceTimesteps` for each t. The strata have equal probability and share one offset (Kingma et al. 2021,
    appendix I.1).

    Args:
        num_blocks: The number of blocks; 1 is the uniform density.
        uniform_share: The probability of a uniform draw.
        decay: The decay of the average of squared losses of a block, for each batch with draws there.
        continuous: Draw real t in [1, T], for a network that gets log SNR: training in continuous time.
    """

    num_blocks: int = 64
    uniform_share: float = 0.1
    decay: float = 0.95
    continuous: bool = False

    uses_losses = True

    def __post_init__(self) -> None:
        """Checks the settings and starts without losses."""
        check_at_least(self, 1, num_blocks=self.num_blocks)
        _check_share(self, self.uniform_share)
        if not 0 <= self.decay < 1:
            raise InputError(f"decay = {self.decay} of AdaptiveTimesteps must be in [0, 1).")
        self.reset()

    @override
    def reset(self) -> None:
        self._mean_square = torch.full((self.num_blocks,), torch.nan, dtype=torch.float64)  # NaN: no loss yet
        self._num_steps = 0  # T of the last draw

    def probabilities(self) -> Tensor:
        """Returns the probability of each block: float64 ``[num_blocks]``."""
        rms = self._mean_square.sqrt()
        if bool(rms.isnan().any()) or rms.sum() == 0:
            return torch.full_like(rms, 1 / self.num_blocks)
        return importance_density(rms, self.uniform_share)

    @override
    def sample(self, batch_size: int, num_steps: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        self._num_steps = num_steps
        p = self.probabilities()
        quantile = _strata(batch_size, generator)
        right = p.cumsum(0)
        block = torch.searchsorted(right, quantile, right=True).clamp(max=self.num_blocks - 1)
        fraction = 1 - ((right[block] - quantile) / p[block]).clamp(0, 1)
        position = (block + fraction) / self.num_blocks
        if self.continuous:
            t = 1 + (num_steps - 1) * position
        else:
            t = 1 + (num_steps * position).long().clamp(max=num_steps - 1)
        return t, 1 / (self.num_blocks * p[block])

    @override
    def update(self, t: Tensor, losses: Tensor) -> None:
        finite = losses.isfinite()  # a step with others is skipped
        t, losses = t[finite], losses[finite]
        position = (t - 1.0) / (self._num_steps - 1) if self.continuous else (t - 0.5) / self._num_steps
        block = (position * self.num_blocks).long().clamp(0, self.num_blocks - 1)
        count = torch.zeros_like(self._mean_square).index_add_(0, block, torch.ones_like(losses, dtype=torch.float64))
        mean = torch.zeros_like(count).index_add_(0, block, losses.double() ** 2) / count.clamp(min=1)
        known = torch.where(self._mean_square.isnan(), mean, torch.lerp(mean, self._mean_square, self.decay))
        self._mean_square = torch.where(count > 0, known, self._mean_square)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"mean_square": self._mean_square}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if len(state_dict["mean_square"]) == self.num_blocks:  # not of a sampler with other blocks
            self._mean_square = state_dict["mean_square"].clone()
