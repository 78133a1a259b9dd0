"""A loader that goes on in the middle of an epoch."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, DistributedSampler


class EpochSampler(DistributedSampler[Any]):
    """An order that is a function of (seed, epoch, rank), without its first `skip` entries."""

    skip = 0

    def __iter__(self) -> Iterator[Any]:
        """The rest of this epoch's order."""
        return islice(super().__iter__(), self.skip, None)


class ResumableLoader(DataLoader[Any]):
    """Whole batches in the order of an `EpochSampler`; Lightning keeps its state in checkpoints.

    Args:
        dataset: The images.
        batch_size: Images in a batch.
        sampler: Their order.
        **kwargs: See `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, sampler: EpochSampler, **kwargs: Any) -> None:
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=True, **kwargs)
        self._given = 0  # batches of this epoch
        self._resume_at = 0  # of the next one

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's type is its own class of iterators
        """The batches of an epoch, or the rest of one that a checkpoint cut off."""
        self._given, self._resume_at = self._resume_at, 0
        cast(EpochSampler, self.sampler).skip = self._given * cast(int, self.batch_size)
        return self._counted(super().__iter__())

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch have been given."""
        return {"batches": self._given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has the next epoch begin where the one of `state_dict` was; after its last batch, from the start."""
        self._resume_at = state_dict["batches"] % len(self)
