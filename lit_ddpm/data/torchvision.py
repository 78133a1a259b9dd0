"""The small datasets of torchvision, in memory."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_one_of
from lit_ddpm.data.base import ImageDataModule, ImageTensors, split_rows

Dataset = Literal["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"]


class TorchvisionDataModule(ImageDataModule):
    """MNIST, FashionMNIST, CIFAR-10 or CIFAR-100 with its test split; the validation images are training images.

    Args:
        dataset: The name of the dataset.
        root: The folder of torchvision's datasets.
        download: Download the dataset if it is missing.
        val_size: The number of training images that are kept for validation.
        split_seed: The seed of their choice.
        batch_size: Images in a training batch of each rank.
        eval_batch_size: Images in a validation or test batch of each rank.
        flip: Flip half of the training images horizontally.

    Raises:
        ValueError: If the dataset is unknown; in `setup`, if it is missing or damaged.
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
        check_one_of("TorchvisionDataModule", get_args(Dataset), dataset=dataset)
        self.dataset = dataset
        self.root = root
        self.download = download
        self.val_size = val_size
        self.split_seed = split_seed
        self.image_shape = (1, 28, 28) if "MNIST" in dataset else (3, 32, 32)
        self.num_classes = 100 if dataset == "CIFAR100" else 10

    @override
    def prepare_data(self) -> None:
        if self.download:
            self._read(train=True, download=True)

    @override
    def splits(self) -> dict[str, ImageTensors]:
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
            raise InputError(
                f"{self.dataset} is missing or damaged in root = {self.root}, and was not downloaded ({reason}): set "
                "root to a folder that contains torchvision's files."
            ) from None
        images = torch.as_tensor(np.asarray(found.data))
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(found.targets, dtype=torch.int64)
