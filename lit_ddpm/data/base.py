"""Image data modules: uint8 until they are on the device, in [-1, 1] after."""

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
    """Images and labels that are read a whole batch at a time; see `ImageTensors` and `ImageFiles`."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of grey levels, uint8 ``[B, C, H, W]``, and labels, int64 ``[B]``, already collated."""

    def fingerprint(self) -> str:
        """A string that changes with the images."""


@dataclass(frozen=True)
class ImageTensors(Dataset[Batch]):
    """Images and labels in memory, indexed a whole batch at a time.

    Attributes:
        images: Grey levels, uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """One image and its label."""
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of images and labels, already collated: no Python call an image."""
        rows = torch.as_tensor(indices)
        return self.images[rows], self.labels[rows]

    def fingerprint(self) -> str:
        """The SHA-256 of the grey levels."""
        return hashlib.sha256(self.images.contiguous().numpy().tobytes()).hexdigest()


class ImageDataModule(LightningDataModule):
    """Splits of images. A subclass implements `splits` and states `image_shape`, and `levels` and `num_classes`.

    The order of the training images, and which of them are flipped, is a function of (seed, epoch, batch, rank) alone.
    Evaluation visits every image in order, and never flips one.

    Args:
        batch_size: Images in a training batch on each process.
        eval_batch_size: Images in a validation or test batch on each process.
        flip: Mirror half of the training images, chosen anew in each epoch, left to right; on the device.
        num_workers: Processes that read images; 0 where they are in memory.

    Attributes:
        image_shape: ``(C, H, W)``.
        levels: The number of grey levels.
        num_classes: The number of labels, or None for images without.

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
        """The ``train``, ``val`` and ``test`` `Images`, disjoint and the same in every process."""

    def setup(self, stage: str) -> None:
        """Loads the splits once, checks them and says their sizes."""
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
        """Shuffled whole batches; incomplete ones are left out. A checkpoint knows where in the epoch it was.

        Raises:
            ValueError: If there are fewer images than a batch has.
        """
        images = self._dataset("train")
        replicas, rank = self._processes()
        count = len(self._splits["train"])
        if count < self.batch_size * replicas:
            raise ValueError(
                f"batch_size = {self.batch_size} on {replicas} process(es) is more than the {count} training images."
            )
        sampler = EpochSampler(images, num_replicas=replicas, rank=rank, shuffle=True, seed=training_seed())
        return ResumableLoader(images, self.batch_size, sampler, Progress(self.trainer), **self._reading())

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation images in order."""
        return DataLoader(self._dataset("val"), batch_size=self.eval_batch_size, **self._reading())

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images in order."""
        return DataLoader(self._dataset("test"), batch_size=self.eval_batch_size, **self._reading())

    def reference_dataloader(self) -> DataLoader[Batch]:
        """The training images in order, in [-1, 1] and never flipped: what generated images are compared with.

        Whole batches are dealt to the processes in turn.
        """
        images, size = self._dataset("train"), self.eval_batch_size
        count = len(self._splits["train"])
        replicas, rank = self._processes()
        batches = [list(range(first, min(first + size, count))) for first in range(0, count, size)]
        reading = self._reading() | {"collate_fn": partial(_collate_in_range, levels=self.levels)}
        return DataLoader(images, batch_sampler=batches[rank::replicas], **reading)

    def fingerprint(self) -> str:
        """Tells these training images from others, for what is kept about them."""
        return f"{type(self).__name__} {self._splits['train'].fingerprint()}"

    def train_histogram(self) -> Tensor | None:
        """How often each pixel has each level in the training split: int64 ``[levels, C, H, W]``; None for files."""
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
        """Maps grey levels to [-1, 1], on the device, and flips training images."""
        images, labels = batch
        if self.flip and self.trainer is not None and self.trainer.training:
            position = (self.trainer.current_epoch, self.trainer.fit_loop.batch_idx, self.trainer.global_rank)
            generator = keyed_generator("flip", training_seed(), *position)
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
        return to_float(images, self.levels), labels

    def _dataset(self, split: str) -> Dataset[Batch]:
        return cast(Dataset[Batch], self._splits[split])

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _reading(self) -> dict[str, Any]:
        reading = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return {**reading, "collate_fn": _already_collated}


def split_rows(count: int, sizes: dict[str, int], seed: int) -> dict[str, list[int]]:
    """A random split of ``range(count)``, the same for the same seed: parts of the sizes named, the rest is ``train``.

    Raises:
        ValueError: If nothing is left to train on.
    """
    if sum(sizes.values()) >= count or min(sizes.values()) < 1:
        wanted = ", ".join(f"{name}_size = {size}" for name, size in sizes.items())
        raise ValueError(f"{wanted} must each be at least 1 and leave some of the {count} images to train on.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order, [*sizes.values(), count - sum(sizes.values())])
    return {name: rows.tolist() for name, rows in zip([*sizes, "train"], parts, strict=True)}


def _collate_in_range(batch: Batch, levels: int) -> Batch:
    return to_float(batch[0], levels), batch[1]


def _already_collated(batch: Any) -> Batch:
    return cast(Batch, batch)
