"""Data modules: batches are pixel levels or real values until they are on the device, and scaled after."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least
from lit_ddpm._internal.device import to_device
from lit_ddpm._internal.random import keyed_generator, training_seed
from lit_ddpm.data.loader import EpochSampler, Progress, ResumableLoader
from lit_ddpm.data.pixels import TYPE_LEVELS, Standardization, take, to_float

Batch = tuple[Tensor, ...]  # images, labels and, if there are any, conditions

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The names of splits that a dataset may have."""


class Images(Dataset[Batch]):
    """Images that are read a batch at a time, and their labels, int64 ``[N]``; -1 is an image without a label."""

    labels: Tensor

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns a collated batch: images ``[B, C, H, W]``, labels int64 ``[B]`` and, if there are any, conditions.

        Images are pixel levels, uint8 or uint16, or real values; sequences are ``[B, C, L]`` and volumes
        ``[B, C, D, H, W]``.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a string that changes with the images."""

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    @override
    def __getitem__(self, index: int) -> Batch:
        return tuple(entry[0] for entry in self.__getitems__([index]))


@dataclass(frozen=True)
class ImageTensors(Images):
    """Images, labels and conditions in memory."""

    images: Tensor  # pixel levels, uint8 or uint16, or real values, [N, C, H, W]
    labels: Tensor  # int64 [N]
    cond: Tensor | None = None  # [N, C', ...]

    @override
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = torch.as_tensor(indices)
        conditions = () if self.cond is None else (take(self.cond, rows),)
        return take(self.images, rows), self.labels[rows], *conditions

    @override
    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.contiguous().numpy().tobytes()).hexdigest()


class ImageDataModule(LightningDataModule):
    """Splits of a dataset. A subclass implements `splits` and sets `image_shape`, `levels` and `num_classes`.

    The order of the training images and their random flips are a function of (seed, epoch, batch, rank). Evaluation
    reads every image in order, without flips.

    Args:
        batch_size: Images in a training batch of each rank.
        eval_batch_size: Images in a validation or test batch of each rank.
        flip: Flip half of the training images along their last axis, drawn anew in each epoch; on the device.
        num_workers: Worker processes that read images; 0 for images in memory.

    Raises:
        ValueError: If a number is too small; in `setup`, if a split is empty or a label out of range.
    """

    image_shape: tuple[int, ...]  # (C, H, W); (C, L) for sequences, (C, D, H, W) for volumes
    levels: int | None = 256  # the number of pixel levels; None for real values
    num_classes: int | None = None  # None without labels
    cond_shape: tuple[int, ...] | None = None  # of the condition of an image; None without conditions
    standardization: Standardization | None = None  # of real values

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
        self._splits: Mapping[str, Images] = {}

    @abstractmethod
    def splits(self) -> Mapping[str, Images]:
        """Returns ``train``, ``val`` and ``test``, disjoint and the same on every rank."""

    @override
    def setup(self, stage: str) -> None:
        """Loads the splits once, checks them and reports their sizes."""
        if self._splits:
            return
        splits = self.splits()
        for name, images in splits.items():
            if len(images) == 0:
                raise InputError(f"the {name} split of {type(self).__name__} is empty.")
            labels = getattr(images, "labels", None)  # a user's own dataset may read them with the images
            if self.num_classes is not None and labels is not None:
                least, most = int(labels.min()), int(labels.max())
                if least < -1 or most >= self.num_classes:
                    raise InputError(
                        f"the {name} split of {type(self).__name__} has labels {least} to {most}; with num_classes = "
                        f"{self.num_classes} they must be 0 to {self.num_classes - 1}, or -1 without a label."
                    )
        self._splits = splits
        sizes = ", ".join(f"{len(images):,} {name}" for name, images in splits.items())
        values = "real values" if self.levels is None else f"{self.levels:,} levels"
        rank_zero_info(f"{type(self).__name__}: {sizes} images of {list(self.image_shape)}, {values}.")

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns shuffled complete batches; training resumes within an epoch.

        Raises:
            ValueError: If there are fewer images than in a batch.
        """
        images, (replicas, rank) = self._splits["train"], self._replicas()
        if len(images) < self.batch_size * replicas:
            raise InputError(
                f"batch_size = {self.batch_size} on {replicas} rank(s) is more than the {len(images)} training images."
            )
        sampler = EpochSampler(images, num_replicas=replicas, rank=rank, shuffle=True, seed=training_seed())
        settings = self._loader_settings() | {"batch_size": self.batch_size, "sampler": sampler, "drop_last": True}
        return ResumableLoader(images, Progress(self.trainer), **settings)

    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self._splits["val"], batch_size=self.eval_batch_size, **self._loader_settings())

    @override
    def test_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self._splits["test"], batch_size=self.eval_batch_size, **self._loader_settings())

    @override
    def predict_dataloader(self) -> DataLoader[Batch]:
        """Returns the test images: for each, ``predict`` draws one under the same conditions, such as its label."""
        return self.test_dataloader()

    def reference_dataloader(self) -> DataLoader[Batch]:
        """Returns the training images in order, scaled and without flips: the reference of FID.

        Batches are distributed round-robin across ranks.
        """
        images, (replicas, rank) = self._splits["train"], self._replicas()
        batches = list(BatchSampler(range(len(images)), self.eval_batch_size, drop_last=False))
        settings = self._loader_settings() | {"collate_fn": self._scale()}
        return DataLoader(images, batch_sampler=batches[rank::replicas], **settings)

    def held_out_dataloader(self, split: Literal["val", "test"]) -> DataLoader[Batch]:
        """Returns a held-out split in order, scaled, on every rank and without workers: the conditions of samples."""
        generator = torch.Generator()  # torch's loader draws a number from the global one otherwise
        settings: dict[str, Any] = {"batch_size": self.eval_batch_size, "generator": generator}
        return DataLoader(self._splits[split], collate_fn=self._scale(), **settings)

    def fingerprint(self) -> str:
        """Returns a fingerprint of the training images, for cached statistics."""
        return f"{type(self).__name__} {self._splits['train'].fingerprint()}"

    def train_histogram(self) -> Tensor | None:
        """Returns the counts of each pixel level in the training split: int64 ``[levels, C, H, W]``.

        None for real values, for more than 256 levels and for images that are not in memory.
        """
        split = self._splits["train"]
        if not isinstance(split, ImageTensors) or self.levels is None or self.levels > 256:
            return None
        pixels = math.prod(self.image_shape)
        counts = torch.zeros(self.levels * pixels, dtype=torch.int64)
        for first in range(0, len(split), 1024):
            images = split.__getitems__(range(first, min(first + 1024, len(split))))[0].flatten(1)
            counts += (images.long() * pixels + torch.arange(pixels)).flatten().bincount(minlength=len(counts))
        return counts.reshape(self.levels, *self.image_shape)

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scales images and conditions on the device, and flips training images together with their conditions.

        Pixel levels are mapped to [-1, 1]. Conditions of an integer type are too, from the range of their type.
        """
        batch = self._scale()(batch)
        if self.flip and self.trainer is not None and self.trainer.training:
            position = (self.trainer.current_epoch, self.trainer.fit_loop.batch_idx, self.trainer.global_rank)
            generator = keyed_generator("flip", training_seed(), *position)
            flipped = to_device(torch.rand(len(batch[0]), generator=generator) < 0.5, batch[0].device)
            batch = tuple(_flip(entry, flipped) if entry.ndim == batch[0].ndim else entry for entry in batch)
        return batch

    def _scale(self) -> Callable[[Any], Batch]:
        return partial(_scaled, levels=self.levels, standardization=self.standardization)

    def _replicas(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _loader_settings(self) -> dict[str, Any]:
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return {**workers, "collate_fn": _already_collated}


def rows_of_missing_splits(
    count: int, existing: Iterable[str], val_size: int | None, test_size: int | None, seed: int
) -> dict[str, list[int]]:
    """Splits ``range(count)`` into ``train`` and those of ``val`` and ``test`` that a dataset lacks.

    A size of None is a tenth of the images, at least one. The result is empty if the dataset has both.
    """
    share = max(1, count // 10)
    sizes = {"test": test_size, "val": val_size}
    missing = {name: share if size is None else size for name, size in sizes.items() if name not in existing}
    return split_rows(count, missing, seed) if missing else {}


def split_rows(count: int, sizes: dict[str, int], seed: int) -> dict[str, list[int]]:
    """Splits ``range(count)`` at random, as a function of the seed, into the sizes given; the rest is ``train``."""
    if sum(sizes.values()) >= count or min(sizes.values()) < 1:
        wanted = ", ".join(f"{name}_size = {size}" for name, size in sizes.items())
        raise InputError(f"{wanted} must each be at least 1 and leave at least one of the {count} images for training.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order, [*sizes.values(), count - sum(sizes.values())])
    return {name: rows.tolist() for name, rows in zip([*sizes, "train"], parts, strict=True)}


def hides_progress(count: int, least: int) -> bool:
    """Returns whether to hide a progress bar: for fewer than `least` items, and on ranks other than 0."""
    return count < least or getattr(rank_zero_only, "rank", 0) != 0


def _scaled(batch: Batch, levels: int | None, standardization: Standardization | None) -> Batch:
    images, labels, *conditions = batch
    if levels is not None:
        images = to_float(images, levels)
    elif standardization is not None:
        images = standardization.apply(images)
    return images, labels, *(to_float(x, TYPE_LEVELS[x.dtype]) if x.dtype in TYPE_LEVELS else x for x in conditions)


def _flip(images: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped.reshape(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


def _already_collated(batch: Any) -> Batch:
    return cast(Batch, batch)
