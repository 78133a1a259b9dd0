"""A loader that goes on in the middle of an epoch."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from torch.utils.data import DataLoader, Dataset, DistributedSampler

if TYPE_CHECKING:
    from torch.utils.data.dataloader import _BaseDataLoaderIter


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
        num_trained: Tells how many batches of this epoch have been trained on. The loader itself cannot: the one it
            gave last may have been cut off.
        **kwargs: See `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        sampler: EpochSampler,
        num_trained: Callable[[], int],
        **kwargs: Any,
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=True, **kwargs)
        self._num_trained = num_trained
        self._resume_at = 0  # the batch that the next epoch begins with

    def __iter__(self) -> "_BaseDataLoaderIter":
        """The batches of an epoch, or the rest of one that was cut off."""
        cast(EpochSampler, self.sampler).skip = self._resume_at * cast(int, self.batch_size)
        self._resume_at = 0
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch have been trained on."""
        return {"batches": self._num_trained()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has the next epoch begin where the one of `state_dict` was; after its last batch, from the start."""
        self._resume_at = state_dict["batches"] % len(self)
