"""Image data modules: uint8 until they are on the device, in [-1, 1] after."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lit_ddpm.data.pixels import to_float
from lit_ddpm.seeding import training_seed

Batch = tuple[Tensor, Tensor]


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


class ImageDataModule(LightningDataModule):
    """Splits of images in memory. A subclass implements `splits` and states `image_shape` and `levels`.

    The order of the training images is a function of (seed, epoch) alone. Evaluation visits every image in order.

    Args:
        batch_size: Images in a training batch on each process.
        eval_batch_size: Images in a validation or test batch on each process.

    Attributes:
        image_shape: ``(C, H, W)``.
        levels: The number of grey levels.

    Raises:
        ValueError: If a batch size is less than 1.
    """

    image_shape: tuple[int, int, int]
    levels: int = 256

    def __init__(self, batch_size: int = 128, eval_batch_size: int = 128) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} = {value} of {type(self).__name__} must be at least 1.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self._splits: dict[str, ImageTensors] = {}

    @abstractmethod
    def splits(self) -> dict[str, ImageTensors]:
        """The ``train``, ``val`` and ``test`` images, disjoint and the same in every process."""

    def setup(self, stage: str) -> None:
        """Loads the splits once and says their sizes."""
        if not self._splits:
            self._splits = self.splits()
            sizes = ", ".join(f"{len(split):,} {name}" for name, split in self._splits.items())
            rank_zero_info(f"{type(self).__name__}: {sizes} images of {list(self.image_shape)}, {self.levels} levels.")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled whole batches; incomplete ones are left out.

        Raises:
            ValueError: If there are fewer images than a batch has.
        """
        images = self._splits["train"]
        replicas, rank = self._processes()
        if len(images) < self.batch_size * replicas:
            raise ValueError(
                f"batch_size = {self.batch_size} on {replicas} process(es) is more than the "
                f"{len(images)} training images."
            )
        sampler: DistributedSampler[Batch] = DistributedSampler(
            images, num_replicas=replicas, rank=rank, shuffle=True, seed=training_seed()
        )
        return DataLoader(
            images, batch_size=self.batch_size, sampler=sampler, drop_last=True, collate_fn=_already_collated
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation images in order."""
        return self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images in order."""
        return self._eval_dataloader("test")

    def _eval_dataloader(self, split: str) -> DataLoader[Batch]:
        return DataLoader(self._splits[split], batch_size=self.eval_batch_size, collate_fn=_already_collated)

    def reference_dataloader(self) -> DataLoader[Batch]:
        """The training images in order, in [-1, 1] and never augmented: what generated images are compared with.

        Whole batches are dealt to the processes in turn.
        """
        images = self._splits["train"]
        replicas, rank = self._processes()
        size = self.eval_batch_size
        batches = [list(range(first, min(first + size, len(images)))) for first in range(0, len(images), size)]
        collate = partial(_collate_in_range, levels=self.levels)
        return DataLoader(images, batch_sampler=batches[rank::replicas], collate_fn=collate)

    def fingerprint(self) -> str:
        """Tells these training images from others, for what is kept about them."""
        images = self._splits["train"].images
        return f"{type(self).__name__} {hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()}"

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Maps grey levels to [-1, 1], on the device."""
        images, labels = batch
        return to_float(images, self.levels), labels

    def train_histogram(self) -> Tensor:
        """How often each pixel has each level in the training split: int64 ``[levels, C, H, W]``."""
        images = self._splits["train"].images
        return torch.stack([(images == level).sum(0) for level in range(self.levels)])


def _collate_in_range(batch: Batch, levels: int) -> Batch:
    return to_float(batch[0], levels), batch[1]


def _already_collated(batch: Any) -> Batch:
    return cast(Batch, batch)
