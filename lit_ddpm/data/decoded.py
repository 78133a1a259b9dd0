"""Images that must be decoded: checked at the start, then read all at once or as they are needed."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from numpy.typing import NDArray
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least
from lit_ddpm.data.base import Batch, ImageDataModule, Images, ImageTensors, rows_of_missing_splits
from lit_ddpm.data.decoded_images import DecodedImages, IntactImages, some_of
from lit_ddpm.data.image_modes import Decoding, Headers, check_background
from lit_ddpm.data.pixels import level_dtype


class DecodedDataModule(ImageDataModule):
    """A data module of images to decode; a subclass implements `find` and passes its other settings on.

    16-bit grayscale images have 65,536 levels; all others have 256.

    Args:
        image_size: The height and width of an image: shorter sides are resized to it and the center is cropped. None if
            all images have one size.
        channels: 1 for grayscale, 3 for color. If None, 1 for 16-bit grayscale images and 3 for others.
        background: The color behind transparent pixels, by name or as ``#rrggbb``.
        val_size: The number of validation images, chosen at random; a tenth of the images, at least one, if None.
            Ignored if the data has a validation split.
        test_size: The number of test images, likewise.
        split_seed: The seed of the choice.
        in_memory: Read all images at the start; if not, `num_workers` processes read them as they are needed.
        num_workers: Worker processes that read images unless they are in memory.
        check_overlap: Warn at the start of images that two splits share, by a hash of their files. If None, only if the
            images are in memory.
        skip_damaged: Leave out images that are damaged at the start, and replace one that is damaged when it is
            streamed by the next of its split; both are counted in warnings. If False, a damaged image is an error.
        **settings: See `ImageDataModule`.

    Raises:
        ValueError: If a setting is out of range; in `setup`, if an image is damaged or of a kind that is not used, if
            sizes differ without `image_size`, or if only some images are 16-bit grayscale.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        background: str = "white",
        val_size: int | None = None,
        test_size: int | None = None,
        split_seed: int = 0,
        in_memory: bool = True,
        num_workers: int = 0,
        check_overlap: bool | None = None,
        skip_damaged: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(num_workers=0 if in_memory else num_workers, **settings)
        if channels not in (None, 1, 3):
            raise InputError(f"channels = {channels} of {type(self).__name__} must be 1 (grayscale) or 3 (color).")
        check_at_least(self, 1, image_size=image_size)
        check_background(self, background)
        self.channels = channels
        self.decoding = Decoding(image_size, channels or 3, background, levels=256)  # for `find`, of 8-bit images
        self.val_size = val_size
        self.test_size = test_size
        self.split_seed = split_seed
        self.in_memory = in_memory
        self.check_overlap = check_overlap
        self.skip_damaged = skip_damaged

    @abstractmethod
    def find(self) -> Mapping[str, DecodedImages]:
        """Returns the images by split and sets `num_classes`; ``train`` with all images if the data has no splits."""

    @override
    def splits(self) -> Mapping[str, Images]:
        damaged: list[str] = []
        found = self._check(self.find(), damaged)
        images = found["train"]
        rows_by_split = rows_of_missing_splits(len(images), found, self.val_size, self.test_size, self.split_seed)
        found |= {name: images.subset(rows) for name, rows in rows_by_split.items()}
        ordered = {name: found[name] for name in ("train", "val", "test")}
        if self.in_memory if self.check_overlap is None else self.check_overlap:
            _report_overlap(ordered)
        splits = {name: self._load(name, images, damaged) for name, images in ordered.items()}
        if damaged:
            rank_zero_warn(f"{len(damaged):,} damaged images are left out: {some_of(damaged)}.")
        return splits

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        streamed = [images for images in self._splits.values() if isinstance(images, IntactImages)]
        if damaged := [name for images in streamed for name in images.newly_damaged()]:
            count = sum(int(images.reported.sum()) for images in streamed)
            message = f"{count:,} damaged images are replaced by the next of their split; new: {some_of(damaged)}."
            warnings.warn(message, stacklevel=2)  # on every rank, since each reads other images
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def _check(self, found: Mapping[str, DecodedImages], damaged: list[str]) -> dict[str, DecodedImages]:
        """Reads all headers, sets `image_shape` and `levels`, logs the conversions and returns the intact images."""
        headers, checked = Headers(), {}
        for split, images in found.items():
            description = f"checking {split} images"
            intact = images.for_each(
                images.header, lambda _, header: headers.add(header), description, self.skip_damaged
            )
            checked[split] = _without_damaged(split, images, intact, damaged)
        if not headers.sizes:
            raise InputError(f"{type(self).__name__} has no images.")
        self.levels = levels = headers.common_levels()
        if levels > 256 and self.channels == 3:
            raise InputError(f"channels = 3 of {type(self).__name__} must be 1: the images are 16-bit grayscale.")
        decoding = replace(self.decoding, channels=1 if levels > 256 else self.decoding.channels, levels=levels)
        self.image_shape = (decoding.channels, *headers.common_size(decoding.image_size))
        if conversions := headers.describe_conversions():
            kind = f"Images are converted to {8 if levels == 256 else 16} bits"
            rank_zero_info(f"{kind}: {conversions}; transparent pixels show {decoding.background}.")
        return {split: replace(images, decoding=decoding) for split, images in checked.items()}

    def _load(self, split: str, images: DecodedImages, damaged: list[str]) -> Images:
        """Decodes the images of a split if they are kept in memory."""
        if not self.in_memory:
            return IntactImages.of(images) if self.skip_damaged else images
        levels = torch.empty(len(images), *self.image_shape, dtype=level_dtype(images.decoding.levels))
        intact = images.for_each(images.read, levels.__setitem__, f"reading {split} images", self.skip_damaged)
        labels = _without_damaged(split, images, intact, damaged).labels
        return ImageTensors(levels if intact.all() else levels[intact], labels)


def _without_damaged(split: str, images: DecodedImages, intact: NDArray[np.bool_], damaged: list[str]) -> DecodedImages:
    """Returns the intact images of a split and adds the names of the others to a list."""
    if intact.all():
        return images
    names = [images.name(row) for row in images.rows[~intact]]
    if not intact.any():
        raise InputError(f"all {len(images):,} images of the {split} split are damaged: {some_of(names)}.")
    damaged.extend(names)
    return images.subset(intact)


@rank_zero_only
def _report_overlap(splits: Mapping[str, DecodedImages]) -> None:
    """Warns of images whose contents two splits share."""
    hashes = {}
    for split, images in splits.items():
        hashes[split] = np.zeros(len(images), np.uint64)
        images.for_each(images.content_hash, hashes[split].__setitem__, f"comparing {split} images")
    for first, second in combinations(splits, 2):
        shared = np.isin(hashes[second], hashes[first], kind="sort")  # the other kind overflows in numpy 2.0
        if shared.any():
            one = int(shared.argmax())
            other = int((hashes[first] == hashes[second][one]).argmax())
            pair = [splits[s].name(splits[s].rows[index]) for s, index in ((second, one), (first, other))]
            count = int(shared.sum())
            rank_zero_warn(f"{count:,} {second} images are also {first} images, such as {' = '.join(pair)}.")
