"""Image data modules: batches are uint8 until they are on the device, and in [-1, 1] after."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm._internal.random import keyed_generator, training_seed
from lit_ddpm.data.loader import EpochSampler, Progress, ResumableLoader
from lit_ddpm.data.pixels import to_float

Batch = tuple[Tensor, Tensor]


class Images(Protocol):
    """Images and labels that are read a batch at a time, such as `ImageTensors`."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns a collated batch: pixel levels, uint8 ``[B, C, H, W]``, and labels, int64 ``[B]``."""

    def fingerprint(self) -> str:
        """Returns a string that changes with the images."""


@dataclass(frozen=True)
class ImageTensors(Dataset[Batch]):
    """Images and labels in memory, indexed a batch at a time.

    Attributes:
        images: Pixel levels, uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """Returns an image and its label."""
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns a collated batch of images and labels without a Python call for each image."""
        rows = torch.as_tensor(indices)
        return self.images[rows], self.labels[rows]

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the pixel levels."""
        return hashlib.sha256(self.images.contiguous().numpy().tobytes()).hexdigest()


class ImageDataModule(LightningDataModule):
    """Splits of an image dataset. A subclass implements `splits` and sets `image_shape`, `levels` and `num_classes`.

    The order of the training images and their random flips are a function of (seed, epoch, batch, rank). Evaluation
    reads every image in order, without flips.

    Args:
        batch_size: Images in a training batch of each rank.
        eval_batch_size: Images in a validation or test batch of each rank.
        flip: Flip half of the training images horizontally, drawn anew in each epoch; on the device.
        num_workers: Worker processes that read images; 0 for images in memory.

    Attributes:
        image_shape: The shape of an image, ``(C, H, W)``.
        levels: The number of pixel levels.
        num_classes: The number of classes, or None without labels.

    Raises:
        ValueError: If a number is too small; in `setup`, if a split is empty or a label out of range.
    """

    image_shape: tuple[int, int, int]
    levels: int = 256
    num_classes: int | None = None

    def __init__(
        self, batch_size: int = 128, eval_batch_size: int = 128, flip: bool = False, num_workers: int = 0
    ) -> None:
        super().__init__()
        check_at_least(self, 1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_at_least(self, 0, num_workers=num_workers)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.flip = flip
        self.num_workers = num_workers
        self._splits: dict[str, Images] = {}

    @abstractmethod
    def splits(self) -> dict[str, Any]:
        """Returns the ``train``, ``val`` and ``test`` `Images`, disjoint and the same on every rank."""

    def setup(self, stage: str) -> None:
        """Loads the splits once, checks them and reports their sizes."""
        if self._splits:
            return
        self._splits = self.splits()
        for name, split in self._splits.items():
            if len(split) == 0:
                raise ValueError(f"the {name} split of {type(self).__name__} is empty.")
            labels = getattr(split, "labels", None)
            if self.num_classes is not None and labels is not None:
                least, most = int(labels.min()), int(labels.max())
                if least < 0 or most >= self.num_classes:
                    raise ValueError(
                        f"the {name} split of {type(self).__name__} has labels {least} to {most}; with num_classes = "
                        f"{self.num_classes} they must be 0 to {self.num_classes - 1}."
                    )
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self._splits.items())
        rank_zero_info(f"{type(self).__name__}: {sizes} images of {list(self.image_shape)}, {self.levels} levels.")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns shuffled complete batches; a checkpoint contains the position in the epoch.

        Raises:
            ValueError: If there are fewer images than in a batch.
        """
        images = self._dataset("train")
        replicas, rank = self._replicas()
        count = len(self._splits["train"])
        if count < self.batch_size * replicas:
            raise ValueError(
                f"batch_size = {self.batch_size} on {replicas} rank(s) is more than the {count} training images."
            )
        sampler = EpochSampler(images, num_replicas=replicas, rank=rank, shuffle=True, seed=training_seed())
        return ResumableLoader(images, self.batch_size, sampler, Progress(self.trainer), **self._loader_settings())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns the validation images in order."""
        return DataLoader(self._dataset("val"), batch_size=self.eval_batch_size, **self._loader_settings())

    def test_dataloader(self) -> DataLoader[Batch]:
        """Returns the test images in order."""
        return DataLoader(self._dataset("test"), batch_size=self.eval_batch_size, **self._loader_settings())

    def reference_dataloader(self) -> DataLoader[Batch]:
        """Returns the training images in order, in [-1, 1] and without flips: the reference of FID.

        Batches are dealt to the ranks in turn.
        """
        images, size = self._dataset("train"), self.eval_batch_size
        count = len(self._splits["train"])
        replicas, rank = self._replicas()
        batches = [list(range(first, min(first + size, count))) for first in range(0, count, size)]
        settings = self._loader_settings() | {"collate_fn": partial(_collate_in_range, levels=self.levels)}
        return DataLoader(images, batch_sampler=batches[rank::replicas], **settings)

    def fingerprint(self) -> str:
        """Returns a fingerprint of the training images, for cached statistics."""
        return f"{type(self).__name__} {self._splits['train'].fingerprint()}"

    def train_histogram(self) -> Tensor | None:
        """Returns the counts of each pixel level in the training split: int64 ``[levels, C, H, W]``; None for files."""
        split = self._splits["train"]
        if not isinstance(split, ImageTensors):
            return None
        pixels = split.images[0].numel()
        counts = torch.zeros(self.levels * pixels, dtype=torch.int64)
        for first in range(0, len(split), 1024):
            images = split.images[first : first + 1024].flatten(1)
            counts += (images.long() * pixels + torch.arange(pixels)).flatten().bincount(minlength=len(counts))
        return counts.reshape(self.levels, *split.images.shape[1:])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Maps pixel levels to [-1, 1] on the device, and flips training images."""
        images, labels = batch
        if self.flip and self.trainer is not None and self.trainer.training:
            position = (self.trainer.current_epoch, self.trainer.fit_loop.batch_idx, self.trainer.global_rank)
            generator = keyed_generator("flip", training_seed(), *position)
            flipped = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(flipped.to(images.device)[:, None, None, None], images.flip(-1), images)
        return to_float(images, self.levels), labels

    def _dataset(self, split: str) -> Dataset[Batch]:
        return cast(Dataset[Batch], self._splits[split])

    def _replicas(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _loader_settings(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": _already_collated,
        }


def split_rows(count: int, sizes: dict[str, int], seed: int) -> dict[str, list[int]]:
    """Splits ``range(count)`` at random, as a function of the seed, into the sizes given; the rest is ``train``.

    Raises:
        ValueError: If no training image remains.
    """
    if sum(sizes.values()) >= count or min(sizes.values()) < 1:
        wanted = ", ".join(f"{name}_size = {size}" for name, size in sizes.items())
        raise ValueError(f"{wanted} must each be at least 1 and leave at least one of the {count} images for training.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order, [*sizes.values(), count - sum(sizes.values())])
    return {name: rows.tolist() for name, rows in zip([*sizes, "train"], parts, strict=True)}


def _collate_in_range(batch: Batch, levels: int) -> Batch:
    return to_float(batch[0], levels), batch[1]


def _already_collated(batch: Any) -> Batch:
    return cast(Batch, batch)
