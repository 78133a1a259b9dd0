"""The small sets of torchvision, in memory."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_ddpm.data.base import ImageDataModule, ImageTensors, split_rows

Dataset = Literal["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"]


class TorchvisionDataModule(ImageDataModule):
    """MNIST, FashionMNIST, CIFAR-10 or CIFAR-100, in memory as uint8; its own test split, validation from the rest.

    Args:
        dataset: Which of them.
        root: The folder that torchvision keeps its sets in.
        download: Download the set if it is not there.
        val_size: The number of training images that are kept for validation.
        split_seed: The seed that chooses them.
        batch_size: Images in a training batch on each process.
        eval_batch_size: Images in a validation or test batch on each process.
        flip: Mirror half of the training images left to right.

    Raises:
        ValueError: If the set is unknown; in `setup`, if the set is not there and cannot be downloaded.
    """

    def __init__(
        self,
        dataset: Dataset,
        root: str = "data",
        download: bool = True,
        val_size: int = 5000,
        split_seed: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 128,
        flip: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, flip)
        if dataset not in ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"):
            raise ValueError(f"dataset = {dataset!r} must be MNIST, FashionMNIST, CIFAR10 or CIFAR100.")
        self.dataset = dataset
        self.root = root
        self.download = download
        self.val_size = val_size
        self.split_seed = split_seed
        self.image_shape = (1, 28, 28) if "MNIST" in dataset else (3, 32, 32)
        self.num_classes = 100 if dataset == "CIFAR100" else 10

    def prepare_data(self) -> None:
        """Downloads the set if it is missing, on one process of each machine."""
        if self.download:
            self._read(train=True, download=True)

    def splits(self) -> dict[str, ImageTensors]:
        """See `ImageDataModule.splits`."""
        images, labels = self._read(train=True)
        rows = split_rows(len(images), {"val": self.val_size}, self.split_seed)
        splits = {name: ImageTensors(images[rows[name]], labels[rows[name]]) for name in ("train", "val")}
        return {**splits, "test": ImageTensors(*self._read(train=False))}

    def _read(self, train: bool, download: bool = False) -> tuple[Tensor, Tensor]:
        from torchvision import datasets

        try:
            found = getattr(datasets, self.dataset)(self.root, train=train, download=download)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{self.dataset} is not in root = {self.root} or damaged there, and cannot be downloaded ({reason}): "
                "put torchvision's files there, or name the folder that has them."
            ) from None
        images = torch.as_tensor(np.asarray(found.data))
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(found.targets, dtype=torch.int64)
