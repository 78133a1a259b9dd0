"""What training and metrics use of a data module; each part is optional, and `ImageDataModule` has all of them."""

from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import DataLoader


@runtime_checkable
class HasReference(Protocol):
    """A data module with the training images without augmentation, for FID."""

    def reference_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Returns batches that the module's ``unpack_batch`` accepts, split across ranks."""


@runtime_checkable
class HasHeldOut(Protocol):
    """A data module with held-out images, whose conditions generated images get."""

    def held_out_dataloader(self, split: Literal["val", "test"]) -> DataLoader[Any]:
        """Returns batches of a split for the module's ``unpack_batch``, in order and the same on every rank."""


@runtime_checkable
class HasFingerprint(Protocol):
    """A data module whose reference statistics can be cached."""

    def fingerprint(self) -> str:
        """Returns a string that changes with the training images."""


@runtime_checkable
class HasHistogram(Protocol):
    """A data module with the histogram of each pixel, for the baseline of the bound."""

    def train_histogram(self) -> Tensor | None:
        """Returns the counts of each pixel level, int64 ``[levels, C, H, W]``, or None if they are not known."""
