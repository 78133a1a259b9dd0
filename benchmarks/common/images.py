"""Images for the benchmarks: random ones, MNIST from its files, and folders of PNG files."""

import gzip
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid
from typing_extensions import override

from lit_ddpm.data import ImageDataModule, ImageTensors
from lit_ddpm.data.base import split_rows


def random_images(count: int = 512, size: int = 32) -> Tensor:
    """Makes smooth random images, uint8 ``[count, 3, size, size]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=generator)
    return (255 * torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)).to(torch.uint8)


@contextmanager
def image_folder(images: Tensor) -> Iterator[str]:
    """Writes images, uint8 ``[N, C, H, W]``, as PNG files to a temporary folder and yields its path."""
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            to_pil_image(image).save(Path(folder) / f"{number:05d}.png")
        yield folder


def write_grid(path: Path, images: Tensor, columns: int = 16) -> None:
    """Writes images, uint8 ``[N, C, H, W]``, as one PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(make_grid(images, columns)).save(path)


class RandomDataModule(ImageDataModule):
    """Random images of the size of CIFAR-10's, the same in each split.

    Args:
        num_images: The number of images.
        batch_size: Images in a training batch on each process.
    """

    image_shape = (3, 32, 32)

    def __init__(self, num_images: int = 10_000, batch_size: int = 128) -> None:
        super().__init__(batch_size)
        self.num_images = num_images

    @override
    def splits(self) -> dict[str, ImageTensors]:
        images = torch.randint(0, 256, (self.num_images, *self.image_shape), dtype=torch.uint8)
        split = ImageTensors(images, torch.zeros(self.num_images, dtype=torch.int64))
        return dict.fromkeys(("train", "val", "test"), split)


class MNISTFiles(ImageDataModule):
    """MNIST's test split, read from its two files: 9,000 images for training, 200 for validation, 800 for testing.

    Args:
        root: The folder with ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``.
        batch_size: Images in a training batch on each process.
        eval_batch_size: Images in a validation or test batch on each process.

    Raises:
        ValueError: In `splits`, if a file is missing.
    """

    image_shape = (1, 28, 28)
    num_classes = 10

    def __init__(self, root: str, batch_size: int = 64, eval_batch_size: int = 100) -> None:
        super().__init__(batch_size, eval_batch_size)
        self.root = Path(root)

    @override
    def splits(self) -> dict[str, ImageTensors]:
        images = self._read("t10k-images-idx3-ubyte.gz", header=16).reshape(-1, *self.image_shape)
        labels = self._read("t10k-labels-idx1-ubyte.gz", header=8).long()
        rows = split_rows(len(images), {"test": 800, "val": 200}, seed=0)
        return {name: ImageTensors(images[rows[name]], labels[rows[name]]) for name in ("train", "val", "test")}

    def _read(self, name: str, header: int) -> Tensor:
        if not (self.root / name).is_file():
            raise ValueError(f"root = {self.root} of MNISTFiles has no {name}.")
        content = gzip.decompress((self.root / name).read_bytes())
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())
