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

    def skip_to(self, entry: int) -> None:
        """Starts the next passes at an entry."""
        self.skip = entry

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
        """The number of batches of this epoch that have been trained on; 0 outside of training."""
        if self.trainer is None or not self.trainer.training:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(progress.processed)


class ResumableLoader(DataLoader[Any]):
    """Batches from the one that the Trainer trains on next, in the order of an `EpochSampler`.

    The position is that of `progress`, which Lightning saves in checkpoints. The loader does not count by itself, since
    its last batch may have been interrupted, ``limit_train_batches`` may shorten the epoch, and with ``max_steps``
    Lightning passes samplers a wrong epoch after it resumes from the end of one.
    """

    def __init__(self, dataset: Dataset[Any], progress: Progress, **kwargs: Any) -> None:
        super().__init__(dataset, **kwargs)
        self.progress = progress

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch returns an iterator class
        # A generator runs at its first batch; Lightning calls this method before it has restored its progress.
        sampler, batches = self.sampler, self.progress.batches
        if not isinstance(sampler, EpochSampler):  # Lightning replaces it for ``overfit_batches``
            yield from islice(super().__iter__(), batches, None)
            return
        sampler.skip_to(batches * cast(int, self.batch_size))
        if (epoch := self.progress.epoch) is not None:  # without a Trainer the caller sets it with `set_epoch`
            sampler.set_epoch(epoch)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing; Lightning considers a loader with this method able to resume within an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing."""
