"""Images that must be decoded: checked at the start, then read all at once or as they are needed."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm.contrib.concurrent import thread_map
from typing_extensions import override

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm.data.base import Batch, ImageDataModule, Images, ImageTensors, split_rows
from lit_ddpm.data.image_modes import UnusableImageError, check_background, check_image, convert_image

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The names of splits that a dataset may have."""

DAMAGED = (OSError, SyntaxError, ValueError)  # what Pillow raises for files that are not images


@dataclass(frozen=True)
class DecodedImages(Images):
    """Images and labels that are decoded on access; a subclass implements `open`, `name` and `fingerprint`."""

    rows: Sequence[Any]  # the arguments of `open`
    labels: Tensor  # int64 [N]
    image_size: int | None  # shorter sides are resized to it and the center is cropped; None keeps the size
    channels: int  # 1 or 3; grayscale and color images are converted to either
    background: str  # the color behind transparent pixels

    @abstractmethod
    def open(self, row: Any) -> Image.Image:
        """Returns the image of a row; its pixels need not be decoded yet."""

    @abstractmethod
    def name(self, row: Any) -> str:
        """Returns the name of a row in messages."""

    @override
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return torch.stack([self.read(i) for i in indices]), self.labels[torch.as_tensor(indices)]

    def read(self, index: int) -> Tensor:
        """Returns one image, uint8 ``[C, H, W]``."""
        with self._opened(index) as file:
            image = convert_image(file, "L" if self.channels == 1 else "RGB", self.background)
        if self.image_size is not None:
            image = F.center_crop(F.resize(image, [self.image_size]), [self.image_size])
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1).contiguous()

    def headers(self) -> list[tuple[tuple[int, int], str | None]]:
        """Reads the header of every image: the width and height of the upright image, and its conversion or None.

        Raises:
            ValueError: If an image is damaged, has several frames or more than 8 bits.
        """
        headers: list[tuple[tuple[int, int], str | None]]
        headers = thread_map(self._header, range(len(self)), desc="checking images", **self._progress_settings)
        return headers

    def in_memory(self) -> ImageTensors:
        """Decodes all images."""
        images = thread_map(self.read, range(len(self)), desc="reading images", **self._progress_settings)
        return ImageTensors(torch.stack(images), self.labels)

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        try:
            with self.open(self.rows[index]) as file:
                yield file
        except UnusableImageError as error:
            raise ValueError(f"{self.name(self.rows[index])} {error}: convert or remove it.") from None
        except DAMAGED as error:
            raise ValueError(f"{self.name(self.rows[index])} is damaged ({error}): remove it.") from None

    def _header(self, index: int) -> tuple[tuple[int, int], str | None]:
        with self._opened(index) as file:
            return check_image(file)

    @property
    def _progress_settings(self) -> dict[str, bool]:
        return {"leave": False, "disable": getattr(rank_zero_only, "rank", 0) != 0 or len(self) < 1000}


class DecodedDataModule(ImageDataModule):
    """A data module of images to decode; a subclass implements `find` and passes its other settings on.

    Args:
        image_size: The height and width of an image: shorter sides are resized to it and the center is cropped. None if
            all images have one size.
        channels: 1 for grayscale, 3 for color.
        background: The color behind transparent pixels, by name or as ``#rrggbb``.
        val_size: The number of validation images, chosen at random; a tenth of the images, at least one, if None.
            Ignored if the data has a validation split.
        test_size: The number of test images, likewise.
        split_seed: The seed of the choice.
        in_memory: Read all images at the start; if not, `num_workers` processes read them as they are needed.
        num_workers: Worker processes that read images unless they are in memory.
        **settings: See `ImageDataModule`.

    Raises:
        ValueError: If a setting is out of range; in `setup`, if an image is unusable, see `DecodedImages.headers`, or
            if sizes differ without `image_size`.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int = 3,
        background: str = "white",
        val_size: int | None = None,
        test_size: int | None = None,
        split_seed: int = 0,
        in_memory: bool = True,
        num_workers: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(num_workers=0 if in_memory else num_workers, **settings)
        if channels not in (1, 3):
            raise ValueError(f"channels = {channels} of {type(self).__name__} must be 1 (grayscale) or 3 (color).")
        check_at_least(self, 1, image_size=image_size)
        check_background(self, background)
        self.image_size = image_size
        self.channels = channels
        self.background = background
        self.val_size = val_size
        self.test_size = test_size
        self.split_seed = split_seed
        self.in_memory = in_memory

    @abstractmethod
    def find(self) -> Mapping[str, DecodedImages]:
        """Returns the images by split and sets `num_classes`; ``train`` with all images if the data has no splits."""

    @override
    def splits(self) -> Mapping[str, Images]:
        found = dict(self.find())
        images = found["train"]
        self.image_shape = (self.channels, *self._common_size(found))
        sizes = {name: size for name, size in (("test", self.test_size), ("val", self.val_size)) if name not in found}
        if sizes:
            share = max(1, len(images) // 10)
            sizes_or_shares = {name: share if size is None else size for name, size in sizes.items()}
            for name, rows in split_rows(len(images), sizes_or_shares, self.split_seed).items():
                found[name] = replace(images, rows=[images.rows[i] for i in rows], labels=images.labels[rows])
        ordered = {name: found[name] for name in ("train", "val", "test")}
        return {name: split.in_memory() for name, split in ordered.items()} if self.in_memory else ordered

    def _common_size(self, found: Mapping[str, DecodedImages]) -> tuple[int, int]:
        """Checks all images, logs the conversions, and returns the height and width of decoded images."""
        sizes: dict[tuple[int, int], str] = {}
        conversions: Counter[str] = Counter()
        for images in found.values():
            for row, (size, conversion) in zip(images.rows, images.headers(), strict=True):
                sizes.setdefault(size, images.name(row))
                if conversion is not None:
                    conversions[conversion] += 1
        if conversions:
            converted = ", ".join(f"{count:,} {conversion}" for conversion, count in conversions.most_common())
            rank_zero_info(f"Images are converted to 8 bits: {converted}; transparent pixels show {self.background}.")
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
