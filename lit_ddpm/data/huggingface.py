"""Datasets of Hugging Face ``datasets``, from disk or from the Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typing_extensions import override

from lit_ddpm.data.decoded import SPLITS, DecodedDataModule, DecodedImages


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
        return (
            f"{self.dataset._fingerprint} {hash(tuple(self.rows))} {self.image_size} {self.channels} {self.background}"
        )


class HuggingFaceDataModule(DecodedDataModule):
    """The images of a Hugging Face dataset; needs the extra ``huggingface``.

    Args:
        path: A directory written by ``save_to_disk``, or the name of a dataset on the Hub.
        name: The configuration of a dataset on the Hub.
        revision: Its version.
        data_files: Its files.
        split: The split that training, validation and test images are chosen from. If None, the splits ``train``,
            ``validation`` and ``test`` are used as they are, and a missing one is chosen from ``train``.
        image_column: The column of the images.
        label_column: The column of class labels, or None for images without labels.
        **settings: See `DecodedDataModule`.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
        image_column: str = "image",
        label_column: str | None = None,
        name: str | None = None,
        revision: str | None = None,
        data_files: str | list[str] | dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.path = path
        self.split = split
        self.image_column = image_column
        self.label_column = label_column
        self.name = name
        self.revision = revision
        self.data_files = data_files

    @override
    def find(self) -> dict[str, DatasetRows]:
        try:
            import datasets
        except ImportError:
            raise ValueError('HuggingFaceDataModule needs datasets: pip install "lit-ddpm[huggingface]".') from None
        options = {"name": self.name, "revision": self.revision, "data_files": self.data_files}
        try:
            if Path(self.path).is_dir() and self.data_files is None:
                loaded = datasets.load_from_disk(self.path)
            else:
                loaded = datasets.load_dataset(self.path, **{key: x for key, x in options.items() if x is not None})
        except Exception as error:  # of many kinds, from files and from the network
            reason = " ".join(str(error).split())
            raise ValueError(
                f"path = {self.path} is neither a dataset directory nor a dataset on the Hub ({reason})."
            ) from None
        found = self._splits_of(loaded) if isinstance(loaded, dict) else {"train": loaded}
        for setting, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            for rows in found.values():
                if column is not None and column not in rows.column_names:
                    columns = ", ".join(rows.column_names)
                    raise ValueError(f"{setting} = {column!r} is not a column of {self.path}: it has {columns}.")
        labels = {split: torch.zeros(len(rows), dtype=torch.int64) for split, rows in found.items()}
        if self.label_column is not None:
            labels = {split: torch.tensor(rows[self.label_column][:]) for split, rows in found.items()}
            names = getattr(found["train"].features[self.label_column], "names", None)
            self.num_classes = len(names) if names else int(torch.cat(list(labels.values())).max()) + 1
        settings = (self.image_size, self.channels, self.background)
        return {
            split: DatasetRows(range(len(rows)), labels[split], *settings, rows, self.image_column)
            for split, rows in found.items()
        }

    def _splits_of(self, loaded: dict[str, Any]) -> dict[str, Any]:
        """Returns the dataset of each split; the chosen one as ``train``."""
        if self.split is not None:
            if self.split not in loaded:
                raise ValueError(f"split = {self.split!r} is not in {self.path}: it has {', '.join(loaded)}.")
            return {"train": loaded[self.split]}
        if "train" not in loaded:
            raise ValueError(f"{self.path} has no split train, but {', '.join(loaded)}: set split.")
        return {SPLITS[name]: rows for name, rows in loaded.items() if name in SPLITS}
