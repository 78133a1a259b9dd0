"""What training and metrics use of a data module; each part is optional, and `ImageDataModule` has all of them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import DataLoader


@runtime_checkable
class HasLevels(Protocol):
    """A data module that states the number of its pixel levels."""

    levels: int


@runtime_checkable
class HasImageShape(Protocol):
    """A data module that states the shape of its images, ``(C, H, W)``."""

    image_shape: tuple[int, ...]


@runtime_checkable
class HasClasses(Protocol):
    """A data module that states the number of its classes, or None without labels."""

    num_classes: int | None


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
    """What a data module states about its images; None where it states nothing.

    Attributes:
        name: The class of the data module.
        levels: The number of pixel levels.
        image_shape: The shape of an image, ``(C, H, W)``.
        states_classes: Whether it states a number of classes.
        num_classes: The number of classes, None also for images without labels.
    """

    name: str
    levels: int | None
    image_shape: tuple[int, ...] | None
    states_classes: bool
    num_classes: int | None

    @classmethod
    def of(cls, data: object) -> "DataInfo":
        """Reads the attributes of a data module; any object, or None, is allowed."""
        return cls(
            name=type(data).__name__,
            levels=data.levels if isinstance(data, HasLevels) else None,
            image_shape=tuple(data.image_shape) if isinstance(data, HasImageShape) and data.image_shape else None,
            states_classes=isinstance(data, HasClasses),
            num_classes=data.num_classes if isinstance(data, HasClasses) else None,
        )
