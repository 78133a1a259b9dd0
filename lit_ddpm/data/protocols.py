"""What training and metrics use of a data module; each part is optional, and `ImageDataModule` has all of them."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import DataLoader

from lit_ddpm.data.pixels import Standardization


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
    """A data module with the histogram of each pixel, for the baseline of the ledger."""

    def train_histogram(self) -> Tensor | None:
        """Returns the counts of each pixel level, int64 ``[levels, C, H, W]``, or None if they are not known."""


@dataclass(frozen=True)
class DataInfo:
    """What a data module states about its images; None where it states nothing."""

    name: str  # its class
    levels: int | None  # the number of pixel levels
    real_valued: bool
    standardization: Standardization | None  # of real values
    image_shape: tuple[int, ...] | None  # (C, H, W)
    states_classes: bool
    num_classes: int | None  # None also for images without labels
    states_conditions: bool
    cond_shape: tuple[int, ...] | None  # (C', H, W); None also for images without conditions

    @classmethod
    def of(cls, data: object) -> "DataInfo":
        """Reads the attributes of a data module; any object, or None, is allowed."""
        return cls(
            name=type(data).__name__,
            levels=getattr(data, "levels", None),
            real_valued=getattr(data, "levels", 0) is None,
            standardization=getattr(data, "standardization", None),
            image_shape=tuple(getattr(data, "image_shape", None) or ()) or None,
            states_classes=hasattr(data, "num_classes"),
            num_classes=getattr(data, "num_classes", None),
            states_conditions=hasattr(data, "cond_shape"),
            cond_shape=getattr(data, "cond_shape", None),
        )
