"""Learning-rate schedules whose length is that of the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, OneCycleLR
from typing_extensions import override

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
        raise ValueError(
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


class OneCycle(OneCycleLR):
    """torch's one-cycle schedule (Smith and Topin 2019) over the whole run: warm-up, then cosine annealing.

    A resumed run with another length, such as more epochs, follows the schedule of its own length from its current step
    and logs a warning.

    Args:
        optimizer: The optimizer.
        max_lr: The peak of the learning rate.
        total_steps: The length in optimizer steps; `num_training_steps` if None.
        pct_start: The fraction of the steps before the peak.
        cycle_momentum: Vary the momentum inversely to the learning rate.
        div_factor: The peak divided by the initial learning rate.
        final_div_factor: The initial learning rate divided by the final one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        cycle_momentum: bool = False,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        total_steps = num_training_steps() if total_steps is None else total_steps
        if pct_start * total_steps == 1:  # torch 2.14 divides by zero for a warm-up of exactly one step
            pct_start *= 1.01
        super().__init__(
            optimizer,
            max_lr,
            total_steps,
            pct_start=pct_start,
            cycle_momentum=cycle_momentum,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
        )

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position; the length stays that of this run."""
        length = {name: vars(self)[name] for name in ("total_steps", "_schedule_phases")}  # as torch 2.14 names them
        super().load_state_dict(state_dict | length)
        before, now, step = state_dict["total_steps"], self.total_steps, self.last_epoch
        if before == now or step >= now:
            return
        stored = self.get_last_lr()[0]
        self.last_epoch -= 1
        self.step()  # sets the learning rate of the current step
        rank_zero_warn(
            f"The learning-rate schedule has {now:,} steps in this run, and had {before:,} when the checkpoint was "
            f"written: from step {step:,} on it follows the new length, with learning rate "
            f"{self.get_last_lr()[0]:.2e} instead of {stored:.2e}."
        )


class LinearWarmup(LinearLR):
    """Increases the learning rate linearly to that of the optimizer in the first `fraction` of the run."""

    def __init__(self, optimizer: Optimizer, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction = {fraction} of LinearWarmup must be in (0, 1].")
        steps = max(1, round(fraction * num_training_steps()))
        super().__init__(optimizer, start_factor=1 / steps, total_iters=steps)
