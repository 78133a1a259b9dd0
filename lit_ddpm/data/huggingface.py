"""Datasets of Hugging Face ``datasets``, from disk or from the Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typing_extensions import override

from lit_ddpm.data.decoded import DecodedDataModule, DecodedImages


@dataclass(frozen=True)
class DatasetRows(DecodedImages):
    """Rows of a dataset by number. The fingerprint contains that of the dataset."""

    dataset: Any
    column: str

    @override
    def open(self, row: int) -> Image.Image:
        image: Image.Image = self.dataset[row][self.column]
        return image.copy()

    @override
    def name(self, row: int) -> str:
        return f"row {row} of the dataset"

    @override
    def fingerprint(self) -> str:
        return f"{self.dataset._fingerprint} {hash(tuple(self.rows))} {self.image_size} {self.channels}"


class HuggingFaceDataModule(DecodedDataModule):
    """The images of one split of a Hugging Face dataset; needs the extra ``huggingface``.

    Args:
        path: A directory written by ``save_to_disk``, or the name of a dataset on the Hub.
        split: The split that training, validation and test images are chosen from.
        image_column: The column of the images.
        label_column: The column of class labels, or None for images without labels.
        **settings: See `DecodedDataModule`.
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

    @override
    def find(self) -> DatasetRows:
        try:
            import datasets
        except ImportError:
            raise ValueError('HuggingFaceDataModule needs datasets: pip install "lit-ddpm[huggingface]".') from None
        load = datasets.load_from_disk if Path(self.path).is_dir() else datasets.load_dataset
        try:
            found = load(self.path)
        except Exception as error:  # of many kinds, from files and from the network
            reason = " ".join(str(error).split())
            raise ValueError(
                f"path = {self.path} is neither a dataset directory nor a dataset on the Hub ({reason})."
            ) from None
        if isinstance(found, dict):
            if self.split not in found:
                raise ValueError(f"split = {self.split!r} is not in {self.path}: it has {', '.join(found)}.")
            found = found[self.split]
        for setting, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            if column is not None and column not in found.column_names:
                columns = ", ".join(found.column_names)
                raise ValueError(f"{setting} = {column!r} is not a column of {self.path}: it has {columns}.")
        labels = torch.zeros(len(found), dtype=torch.int64)
        if self.label_column is not None:
            labels = torch.tensor(found[self.label_column][:])
            names = getattr(found.features[self.label_column], "names", None)
            self.num_classes = len(names) if names else int(labels.max()) + 1
        return DatasetRows(range(len(found)), labels, self.image_size, self.channels, found, self.image_column)
