"""MNIST from the two files of its test split, where the whole set cannot be downloaded."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_ddpm.data import ImageDataModule, ImageTensors
from lit_ddpm.data.base import split_rows


class MNISTFiles(ImageDataModule):
    """The 10,000 images of MNIST's test split: 9,000 to train, 200 for validation, 800 to test.

    Args:
        root: The folder with ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``.
        batch_size: Images in a training batch on each process.
        eval_batch_size: Images in a validation or test batch on each process.
    """

    image_shape = (1, 28, 28)
    num_classes = 10

    def __init__(self, root: str, batch_size: int = 64, eval_batch_size: int = 100) -> None:
        super().__init__(batch_size, eval_batch_size)
        self.root = Path(root)

    def splits(self) -> dict[str, ImageTensors]:
        """See `ImageDataModule.splits`."""
        images = read_idx(self.root / "t10k-images-idx3-ubyte.gz")[:, None]
        labels = read_idx(self.root / "t10k-labels-idx1-ubyte.gz").long()
        rows = split_rows(len(images), {"test": 800, "val": 200}, seed=0)
        return {name: ImageTensors(images[rows[name]], labels[rows[name]]) for name in ("train", "val", "test")}


def read_idx(path: Path) -> Tensor:
    """The numbers of a compressed idx file, uint8."""
    if not path.is_file():
        raise ValueError(f"root = {path.parent} of MNISTFiles has no {path.name}.")
    with gzip.open(path) as file:
        content = file.read()
    shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape).copy())
