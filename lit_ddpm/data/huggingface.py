"""Image sets of Hugging Face ``datasets``, from disk or from the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lit_ddpm.data.decoded import DecodedDataModule, DecodedImages


class _Rows(DecodedImages):
    """Rows of a set; one is the set, a column and a number."""

    def open(self, row: tuple[Any, str, int]) -> Image.Image:
        """See `DecodedImages.open`."""
        images, column, number = row
        image: Image.Image = images[number][column]
        return image.copy()

    def name(self, row: tuple[Any, str, int]) -> str:
        """See `DecodedImages.name`."""
        return f"row {row[2]} of the set"

    def fingerprint(self) -> str:
        """The fingerprint that ``datasets`` gives the set, and what is done to its images."""
        numbers = [row[2] for row in self.rows]
        return f"{self.rows[0][0]._fingerprint} {hash(tuple(numbers))} {self.image_size} {self.channels}"


class HuggingFaceDataModule(DecodedDataModule):
    """The images of one split of a set of Hugging Face ``datasets``, which the extra ``huggingface`` installs.

    Args:
        path: A folder that ``save_to_disk`` wrote, or the name of a set on the hub.
        split: The split that training, validation and test images are chosen from.
        image_column: The column of the images.
        label_column: The column of class labels, or None for images without.
        **settings: See `DecodedDataModule`.

    Raises:
        ValueError: In `setup`, if the set or one of the columns is not there; see `DecodedDataModule` too.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.path = path
        self.split = split
        self.image_column = image_column
        self.label_column = label_column

    def find(self) -> tuple[type[DecodedImages], Sequence[Any], Tensor]:
        """See `DecodedDataModule.find`."""
        try:
            import datasets
        except ImportError:
            raise ValueError('HuggingFaceDataModule needs datasets: pip install "lit-ddpm[huggingface]".') from None
        try:
            on_disk = Path(self.path).is_dir()
            found = datasets.load_from_disk(self.path) if on_disk else datasets.load_dataset(self.path)
        except Exception as error:  # of many kinds, from files and from the network
            reason = " ".join(str(error).split())
            raise ValueError(f"path = {self.path} is no set on disk, and none that the hub gives ({reason}).") from None
        if isinstance(found, dict):
            if self.split not in found:
                raise ValueError(f"split = {self.split!r} is not in {self.path}: it has {', '.join(found)}.")
            found = found[self.split]
        for setting, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            if column is not None and column not in found.column_names:
                columns = ", ".join(found.column_names)
                raise ValueError(f"{setting} = {column!r} is no column of {self.path}: it has {columns}.")
        labels = torch.zeros(len(found), dtype=torch.int64)
        if self.label_column is not None:
            labels = torch.tensor(found[self.label_column][:])
            names = getattr(found.features[self.label_column], "names", None)
            self.num_classes = len(names) if names else int(labels.max()) + 1
        return _Rows, [(found, self.image_column, number) for number in range(len(found))], labels
