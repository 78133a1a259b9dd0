"""A loader that goes on in the middle of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import lightning
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class EpochSampler(DistributedSampler[Any]):
    """An order that is a function of (seed, epoch, rank), without its first `skip` entries."""

    skip = 0

    def __iter__(self) -> Iterator[Any]:
        """The rest of this epoch's order."""
        return islice(super().__iter__(), self.skip, None)


@dataclass
class Progress:
    """How far a Trainer has come, if there is one."""

    trainer: lightning.Trainer | None

    @property
    def epoch(self) -> int | None:
        """The epoch, counted from 0."""
        return self.trainer.current_epoch if self.trainer is not None else None

    @property
    def batches(self) -> int:
        """The batches of the epoch that have been trained on; 0 without a Trainer."""
        if self.trainer is None:
            return 0
        of_epoch: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(of_epoch.processed)


class ResumableLoader(DataLoader[Any]):
    """Whole batches in the order of an `EpochSampler`; Lightning keeps its state in checkpoints.

    Args:
        dataset: The images.
        batch_size: Images in a batch.
        sampler: Their order.
        progress: The epoch, and how much of it has been trained on. The loader itself knows neither: the batch it gave
            last may have been cut off, and with ``max_steps`` Lightning tells samplers another epoch than its own
            after it goes on from the end of one.
        **kwargs: See `torch.utils.data.DataLoader`.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, sampler: EpochSampler, progress: Progress, **kwargs: Any
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=True, **kwargs)
        self._progress = progress
        self._resume_at = 0  # the batch that the next epoch begins with

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch has a class of its own for iterators
        """The batches of an epoch, or the rest of one that was cut off."""
        # A generator begins with its first batch; when Lightning calls this, it does not know the epoch yet.
        sampler = cast(EpochSampler, self.sampler)
        sampler.skip, self._resume_at = self._resume_at * cast(int, self.batch_size), 0
        if (epoch := self._progress.epoch) is not None:  # else whoever loops says it, with `set_epoch`
            sampler.set_epoch(epoch)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch have been trained on."""
        return {"batches": self._progress.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has the next epoch begin where the one of `state_dict` was; after its last batch, from the start."""
        self._resume_at = state_dict["batches"] % len(self)
