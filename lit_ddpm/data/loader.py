"""A data loader that resumes in the middle of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import lightning
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override


class EpochSampler(DistributedSampler[Any]):
    """A shuffle that is a function of (seed, epoch, rank), without its first `skip` entries."""

    skip = 0

    @override
    def __iter__(self) -> Iterator[Any]:
        return islice(super().__iter__(), self.skip, None)


@dataclass
class Progress:
    """The position of a Trainer in its fit."""

    trainer: lightning.Trainer | None  # None outside of Lightning

    @property
    def epoch(self) -> int | None:
        """The current epoch, counted from 0; None without a Trainer."""
        return self.trainer.current_epoch if self.trainer is not None else None

    @property
    def batches(self) -> int:
        """The number of batches of this epoch that have been trained on; 0 without a Trainer."""
        if self.trainer is None:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(progress.processed)

    def epoch_length(self, num_batches: int) -> int:
        """Returns how many of `num_batches` batches an epoch has, which ``limit_train_batches`` can reduce."""
        return num_batches if self.trainer is None else int(min(num_batches, self.trainer.num_training_batches))


class ResumableLoader(DataLoader[Any]):
    """Complete batches in the order of an `EpochSampler`; Lightning saves the state of the loader in checkpoints.

    The position is that of `progress`. The loader does not count by itself, since its last batch may have been
    interrupted, and with ``max_steps`` Lightning passes samplers a wrong epoch after it resumes from the end of one.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, sampler: EpochSampler, progress: Progress, **kwargs: Any
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=True, **kwargs)
        self._progress = progress
        self._first_batch = 0  # of the next epoch

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch returns an iterator class
        # A generator runs at its first batch; Lightning calls this method before it has set the epoch.
        sampler = cast(EpochSampler, self.sampler)
        sampler.skip, self._first_batch = self._first_batch * cast(int, self.batch_size), 0
        if (epoch := self._progress.epoch) is not None:  # without a Trainer the caller sets it with `set_epoch`
            sampler.set_epoch(epoch)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of batches of an unfinished epoch that have been trained on."""
        return {"batches": self._progress.batches % self._progress.epoch_length(len(self))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Starts the next epoch after the batches of `state_dict`; after the last batch, at the first."""
        self._first_batch = state_dict["batches"] % len(self)
