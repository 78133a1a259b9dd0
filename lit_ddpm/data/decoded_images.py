"""Images that are decoded on access, and their replacement where they are damaged."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm.data.base import Batch, Images, hides_progress
from lit_ddpm.data.image_modes import DamagedImageError, Decoding, Header, named, read_header


@dataclass(frozen=True)
class DecodedImages(Images):
    """Images and labels that are decoded on access; a subclass implements `open`, `name` and `fingerprint`."""

    rows: NDArray[Any]  # the arguments of `open`; an array, so that worker processes share its memory
    labels: Tensor  # int64 [N]
    decoding: Decoding

    @abstractmethod
    def open(self, row: Any) -> Image.Image:
        """Returns the image of a row; its pixels need not be decoded yet."""

    @abstractmethod
    def name(self, row: Any) -> str:
        """Returns the name of a row in messages."""

    def content(self, row: Any) -> bytes:
        """Returns the bytes by which two images are the same: those of the file in a subclass, here the pixels."""
        with self.open(row) as image:
            return np.array(image).tobytes()

    @override
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return torch.stack([self.read(i) for i in indices]), self.labels[torch.as_tensor(indices)]

    def read(self, index: int) -> Tensor:
        """Returns the pixel levels of one image, see `Decoding.decode`.

        Raises:
            DamagedImageError: If it cannot be decoded.
        """
        row = self.rows[index]
        with named(self.name(row)), self.open(row) as image:
            return self.decoding.decode(image)

    def header(self, index: int) -> Header:
        """Reads the header of one image.

        Raises:
            DamagedImageError: If the header cannot be read.
            ValueError: If the image is of a kind that is not used.
        """
        row = self.rows[index]
        with named(self.name(row)), self.open(row) as image:
            return read_header(image, self.name(row))

    def content_hash(self, index: int) -> int:
        """Returns a hash of 64 bits of the content of one image."""
        row = self.rows[index]
        with named(self.name(row)):
            return int.from_bytes(hashlib.blake2b(self.content(row), digest_size=8).digest())

    def subset(self, indices: Any) -> Self:
        """Returns the images at some indices."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def for_each(
        self,
        function: Callable[[int], Any],
        use: Callable[[int, Any], None],
        description: str,
        skip_damaged: bool = False,
    ) -> NDArray[np.bool_]:
        """Calls a function of each index in threads with a progress bar, and `use` with index and result in order.

        Returns:
            Which images are intact, bool ``[N]``. Unless damaged images are skipped, the first one is an error.
        """
        attempt = partial(_or_none, function) if skip_damaged else function
        intact = np.ones(len(self), bool)
        size = len(self) // 1000 + 1  # at most a thousand tasks, since a pool queues all of them at once
        tasks = [range(first, min(first + size, len(self))) for first in range(0, len(self), size)]
        progress = tqdm(total=len(self), desc=description, leave=False, disable=hides_progress(len(self), 1000))
        with ThreadPoolExecutor() as pool, progress:
            results = chain.from_iterable(pool.map(lambda task: list(map(attempt, task)), tasks))
            for index, result in enumerate(results):
                intact[index] = result is not None
                if intact[index]:
                    use(index, result)
                progress.update()
        return intact


@dataclass(frozen=True)
class IntactImages(Images):
    """Streamed images; a damaged one is replaced by the next intact one and flagged."""

    images: DecodedImages
    labels: Tensor
    damaged: Tensor  # bool [N], shared with worker processes
    reported: Tensor  # bool [N], the damaged images that `newly_damaged` has returned

    @classmethod
    def of(cls, images: DecodedImages) -> Self:
        """Wraps images, none of them known to be damaged."""
        damaged, reported = torch.zeros(2, len(images), dtype=torch.bool)
        return cls(images, images.labels, damaged.share_memory_(), reported)

    @override
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        found = [self._next_intact(index) for index in indices]
        return torch.stack([pixels for _, pixels in found]), self.labels[torch.tensor([index for index, _ in found])]

    @override
    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def newly_damaged(self) -> list[str]:
        """Returns the names of the images that any process has found damaged since the last call."""
        new = (self.damaged ^ self.reported).nonzero().flatten()
        self.reported[new] = True
        return [self.images.name(self.images.rows[index]) for index in new.tolist()]

    def _next_intact(self, index: int) -> tuple[int, Tensor]:
        for candidate in chain(range(index, len(self)), range(index)):
            try:
                return candidate, self.images.read(candidate)
            except DamagedImageError:
                self.damaged[candidate] = True
        raise InputError(f"all {len(self):,} images of a split are damaged: {some_of(self.newly_damaged())}.")


def some_of(names: Sequence[str]) -> str:
    """Returns the first ten names, and how many more there are."""
    more = [f"{len(names) - 10:,} more"] if len(names) > 10 else []
    return ", ".join([*names[:10], *more])


def _or_none(function: Callable[[int], Any], index: int) -> Any:
    try:
        return function(index)
    except DamagedImageError:
        return None
