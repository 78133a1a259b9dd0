"""Images that must be decoded: found unfit at the start, read all at once or as they are needed."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from tqdm.auto import tqdm

from lit_ddpm.data.base import Batch, ImageDataModule, ImageTensors, split_rows

Result = TypeVar("Result")
DAMAGED = (OSError, SyntaxError, ValueError)  # what Pillow raises for files that are no images


class DecodedImages(Dataset[Batch]):
    """Images and labels that are decoded when they are asked for; a subclass implements `open` and `name`.

    Args:
        rows: What `open` is given to find each image.
        labels: int64 ``[N]``.
        image_size: Shorter sides are resized to it and the centre is cut out; None leaves images as they are.
        channels: 1 for grey, 3 for colour; grey and colour images become either.
    """

    def __init__(self, rows: Sequence[Any], labels: Tensor, image_size: int | None, channels: int) -> None:
        self.rows = rows
        self.labels = labels
        self.image_size = image_size
        self.channels = channels
        steps = [v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)] if image_size is not None else []
        self.resize = v2.Compose([v2.Identity(), *steps])

    @abstractmethod
    def open(self, row: Any) -> Image.Image:
        """The image of a row; its pixels need not be decoded yet."""

    @abstractmethod
    def name(self, row: Any) -> str:
        """What messages call a row."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A string that changes with the images."""

    def __len__(self) -> int:
        """The number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """One image and its label."""
        return self.read(index), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of images and labels, already collated."""
        return torch.stack([self.read(i) for i in indices]), self.labels[torch.as_tensor(indices)]

    def read(self, index: int) -> Tensor:
        """One image, uint8 ``[C, H, W]``.

        Raises:
            ValueError: If it is damaged.
        """
        row = self.rows[index]
        try:
            with self.open(row) as file:
                image = file.convert("L" if self.channels == 1 else "RGB")
        except DAMAGED as error:
            raise ValueError(f"{self.name(row)} is damaged ({error}): remove it.") from None
        pixels = torch.from_numpy(np.array(self.resize(image)))
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1).contiguous()

    def check(self) -> tuple[int, int]:
        """Looks at the beginning of every image, and returns the height and width that they will have.

        Raises:
            ValueError: If one is no image, or not grey or colour of 8 bits, or if sizes differ that must not.
        """
        sizes: dict[tuple[int, int], str] = {}
        for row, (mode, size) in zip(self.rows, self._each(self._header, "checking images"), strict=True):
            if mode not in ("L", "RGB"):
                raise ValueError(
                    f"{self.name(row)} has mode {mode} (a palette, transparency, 16 bits or the like); images must be "
                    "grey (L) or colour (RGB) of 8 bits: convert it."
                )
            sizes.setdefault(size, self.name(row))
        if self.image_size is not None:
            return self.image_size, self.image_size
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise ValueError(
                f"image_size = None needs images of one size, but {first} has {one[0]}x{one[1]} pixels and {second} "
                f"has {other[0]}x{other[1]}: set image_size."
            )
        ((width, height),) = sizes
        return height, width

    def in_memory(self) -> ImageTensors:
        """All images, decoded now.

        Raises:
            ValueError: If one is damaged.
        """
        return ImageTensors(torch.stack(self._each(self.read, "reading images")), self.labels)

    def _header(self, index: int) -> tuple[str, tuple[int, int]]:
        row = self.rows[index]
        try:
            with self.open(row) as file:
                return file.mode, file.size
        except DAMAGED as error:
            raise ValueError(f"{self.name(row)} is no image that can be read ({error}): remove it.") from None

    def _each(self, read: Callable[[int], Result], description: str) -> list[Result]:
        """What `read` says of each image, by several threads, with a progress bar if it may take long."""
        hidden = getattr(rank_zero_only, "rank", 0) != 0 or len(self) < 1000
        with ThreadPoolExecutor() as threads:
            results = threads.map(read, range(len(self)))
            return list(tqdm(results, description, total=len(self), leave=False, disable=hidden))


class DecodedDataModule(ImageDataModule):
    """What data modules of images to decode share; a subclass implements `find` and passes these settings on.

    Args:
        image_size: The height and width of an image: shorter sides are resized to it and the centre is cut out. None if
            all images have one size.
        channels: 1 for grey, 3 for colour.
        val_size: The number of validation images, chosen at random.
        test_size: The number of test images, likewise.
        split_seed: The seed that chooses them.
        in_memory: Read all images at the start; if not, `num_workers` processes read them as they are needed.
        batch_size: Images in a training batch on each process.
        eval_batch_size: Images in a validation or test batch on each process.
        flip: Mirror half of the training images left to right.
        num_workers: Processes that read images where they are not in memory.

    Raises:
        ValueError: If a setting is out of range; in `setup`, if an image cannot be used, or sizes differ and there is
            no `image_size`.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int = 3,
        val_size: int = 1000,
        test_size: int = 1000,
        split_seed: int = 0,
        in_memory: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 128,
        flip: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, flip, 0 if in_memory else num_workers)
        if channels not in (1, 3):
            raise ValueError(f"channels = {channels} of {type(self).__name__} must be 1 (grey) or 3 (colour).")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size = {image_size} of {type(self).__name__} must be at least 1, or None.")
        self.image_size = image_size
        self.channels = channels
        self.val_size = val_size
        self.test_size = test_size
        self.split_seed = split_seed
        self.in_memory = in_memory

    @abstractmethod
    def find(self) -> tuple[type[DecodedImages], Sequence[Any], Tensor]:
        """How images are opened, what finds each, and their labels, int64 ``[N]``; sets `num_classes`."""

    def splits(self) -> dict[str, Any]:
        """See `ImageDataModule.splits`."""
        kind, rows, labels = self.find()
        height, width = kind(rows, labels, self.image_size, self.channels).check()
        self.image_shape = (self.channels, height, width)
        chosen = split_rows(len(rows), {"test": self.test_size, "val": self.val_size}, self.split_seed)
        splits = {
            name: kind([rows[i] for i in chosen[name]], labels[chosen[name]], self.image_size, self.channels)
            for name in ("train", "val", "test")
        }
        return {name: images.in_memory() for name, images in splits.items()} if self.in_memory else splits
