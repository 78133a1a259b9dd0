"""Learning-rate schedules whose length is that of the run."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least

_run_length: ContextVar[Callable[[], float] | None] = ContextVar("run_length", default=None)


def num_training_steps() -> int:
    """Returns the number of optimizer steps of the run, for the ``lr_scheduler`` of a `DDPM`.

    It follows from the number of images, batch size, ranks, epochs, accumulation and limits. A scheduler of torch takes
    it as ``lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=num_training_steps())``.

    Raises:
        ValueError: Outside of the function ``lr_scheduler``, or if the run has no planned end.
    """
    length = _run_length.get()
    if length is None:
        raise ValueError("num_training_steps() is known only while a Trainer builds the lr_scheduler of a DDPM.")
    steps = length()
    if steps == float("inf"):
        raise InputError(
            "the length of the learning-rate schedule is unknown, since max_epochs and max_steps of the Trainer are "
            "-1: set one of them; max_time may end the run earlier."
        )
    return max(1, int(steps))


@contextmanager
def run_length(steps: Callable[[], float]) -> Iterator[None]:
    """Lets `num_training_steps` return the number that `steps` returns, within a block."""
    token = _run_length.set(steps)
    try:
        yield
    finally:
        _run_length.reset(token)


class OneCycle(LRScheduler):
    """A one-cycle schedule (Smith and Topin 2019) over the whole run: cosine warm-up, then cosine annealing.

    The rates are those of torch's ``OneCycleLR``, and the final one after the last step. A resumed run with another
    length, such as more epochs, follows the schedule of its own length from its current step and logs a warning.

    Args:
        optimizer: The optimizer.
        max_lr: The peak of the learning rate.
        total_steps: The length in optimizer steps; `num_training_steps` if None.
        pct_start: The fraction of the steps before the peak.
        div_factor: The peak divided by the initial learning rate.
        final_div_factor: The initial learning rate divided by the final one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self.total_steps = num_training_steps() if total_steps is None else total_steps
        self.max_lr, self.pct_start = max_lr, pct_start
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        check_at_least(self, 1, total_steps=self.total_steps)
        if not 0 <= pct_start <= 1:
            raise InputError(f"pct_start = {pct_start} of OneCycle must be in [0, 1].")
        super().__init__(optimizer)

    @override
    def get_lr(self) -> list[float | Tensor]:
        last, peak = self.total_steps - 1, self.pct_start * self.total_steps - 1
        if peak == 0:  # a warm-up of exactly one step, whose fraction would be 0/0
            peak = self.pct_start * 1.01 * self.total_steps - 1
        step, initial_lr = min(self.last_epoch, last), self.max_lr / self.div_factor
        if step <= peak:
            rate = _cosine(initial_lr, self.max_lr, step / peak)
        else:
            rate = _cosine(self.max_lr, initial_lr / self.final_div_factor, (step - peak) / (last - peak))
        return [rate] * len(self.optimizer.param_groups)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position; the length stays that of this run."""
        before, now = state_dict["total_steps"], self.total_steps
        super().load_state_dict(state_dict | {"total_steps": now})
        step, stored = self.last_epoch, self.get_last_lr()[0]
        if before == now or step >= now:
            return
        self.last_epoch -= 1
        self.step()  # sets the learning rate of the current step
        rank_zero_warn(
            f"The learning-rate schedule has {now:,} steps in this run, and had {before:,} when the checkpoint was "
            f"written: from step {step:,} on it follows the new length, with learning rate "
            f"{self.get_last_lr()[0]:.2e} instead of {stored:.2e}."
        )


def _cosine(start: float, end: float, fraction: float) -> float:
    """Interpolates from `start` to `end` along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


class LinearWarmup(LinearLR):
    """Increases the learning rate linearly to that of the optimizer in the first `fraction` of the run."""

    def __init__(self, optimizer: Optimizer, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"fraction = {fraction} of LinearWarmup must be in (0, 1].")
        steps = max(1, round(fraction * num_training_steps()))
        super().__init__(optimizer, start_factor=1 / steps, total_iters=steps)
