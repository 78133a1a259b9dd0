"""What training and metrics use of a data module; each part is optional, and `ImageDataModule` has all of them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import DataLoader


@runtime_checkable
class HasReference(Protocol):
    """A data module with the training images without augmentation, for FID."""

    def reference_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Returns batches that the module's ``unpack_batch`` accepts, split across ranks."""


@runtime_checkable
class HasFingerprint(Protocol):
    """A data module whose reference statistics can be cached."""

    def fingerprint(self) -> str:
        """Returns a string that changes with the training images."""


@runtime_checkable
class HasHistogram(Protocol):
    """A data module with the histogram of each pixel, for the baseline of the ledger."""

    def train_histogram(self) -> Tensor | None:
        """Returns the counts of each pixel level, int64 ``[levels, C, H, W]``, or None if they are not known."""


@dataclass(frozen=True)
class DataInfo:
    """What a data module states about its images; None where it states nothing."""

    name: str  # its class
    levels: int | None  # the number of pixel levels
    image_shape: tuple[int, ...] | None  # (C, H, W)
    states_classes: bool
    num_classes: int | None  # None also for images without labels

    @classmethod
    def of(cls, data: object) -> "DataInfo":
        """Reads the attributes of a data module; any object, or None, is allowed."""
        return cls(
            name=type(data).__name__,
            levels=getattr(data, "levels", None),
            image_shape=tuple(getattr(data, "image_shape", None) or ()) or None,
            states_classes=hasattr(data, "num_classes"),
            num_classes=getattr(data, "num_classes", None),
        )
