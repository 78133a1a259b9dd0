"""Datasets of Hugging Face ``datasets``, from disk or from the Hub."""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.extras import import_extra
from lit_ddpm.data.base import SPLITS
from lit_ddpm.data.decoded import DecodedDataModule
from lit_ddpm.data.decoded_images import DecodedImages


@dataclass(frozen=True)
class DatasetRows(DecodedImages):
    """Rows of a dataset by number. The fingerprint contains that of the dataset."""

    dataset: Any  # with the encoded images only
    split: str

    @override
    def open(self, row: int) -> Image.Image:
        encoded, path = self._encoded_or_path(row)
        return Image.open(path if encoded is None else BytesIO(encoded))

    @override
    def name(self, row: int) -> str:
        return f"row {row} of {self.split}"

    @override
    def content(self, row: int) -> bytes:
        encoded, path = self._encoded_or_path(row)
        return Path(path).read_bytes() if encoded is None else encoded

    @override
    def fingerprint(self) -> str:
        return f"{self.dataset._fingerprint} {hashlib.sha256(self.rows.tobytes()).hexdigest()} {self.decoding}"

    def _encoded_or_path(self, row: int) -> tuple[bytes | None, str]:
        (cell,) = self.dataset[int(row)].values()
        if cell is None or cell["bytes"] is cell["path"] is None:
            raise ValueError("it has no image")
        return cell["bytes"], cell["path"]


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
        label_column: The column of class labels, or None for images without labels. A row may have the label None or
            -1, and a split other than ``train`` may lack the column: these images have the label -1.
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
        datasets = import_extra("datasets", needed_by="HuggingFaceDataModule", extra="huggingface")
        options = {"name": self.name, "revision": self.revision, "data_files": self.data_files}
        try:
            if Path(self.path).is_dir() and self.data_files is None:
                loaded = datasets.load_from_disk(self.path)
            else:
                loaded = datasets.load_dataset(self.path, **{key: x for key, x in options.items() if x is not None})
        except Exception as error:  # of many kinds, from files and from the network
            reason = " ".join(str(error).split())
            raise InputError(
                f"path = {self.path} is neither a dataset directory nor a dataset on the Hub ({reason})."
            ) from None
        found = self._splits_of(loaded) if isinstance(loaded, dict) else {"train": loaded}
        found = {split: rows.with_format(None) for split, rows in found.items()}
        for split, rows in found.items():
            self._check_column(rows, "image_column", self.image_column)
            if not isinstance(rows.features[self.image_column], datasets.Image):
                raise InputError(
                    f"image_column = {self.image_column!r} of {self.path} has no images in {split}, but "
                    f"{rows.features[self.image_column]}."
                )
        labels = self._labels(found)
        return {
            split: DatasetRows(
                np.arange(len(rows)),
                labels[split],
                self.decoding,
                rows.select_columns(self.image_column).cast_column(self.image_column, datasets.Image(decode=False)),
                split,
            )
            for split, rows in found.items()
        }

    def _labels(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Returns the labels of each split, -1 for images without one, and sets `num_classes`."""
        if self.label_column is None:
            return {split: torch.zeros(len(rows), dtype=torch.int64) for split, rows in found.items()}
        self._check_column(found["train"], "label_column", self.label_column)
        labels = {}
        for split, rows in found.items():
            column = rows[self.label_column][:] if self.label_column in rows.column_names else [None] * len(rows)
            values = np.array([-1 if label is None else label for label in column])
            if values.dtype.kind not in "iub":
                raise InputError(f"label_column = {self.label_column!r} of {self.path} must have integers in {split}.")
            labels[split] = torch.from_numpy(values.astype(np.int64))
        if not bool((labels["train"] >= 0).any()):
            raise InputError(f"label_column = {self.label_column!r} of {self.path} has no label in train.")
        names = getattr(found["train"].features[self.label_column], "names", None)
        self.num_classes = len(names) if names else int(torch.cat(list(labels.values())).max()) + 1
        return labels

    def _check_column(self, rows: Any, setting: str, column: str) -> None:
        if column not in rows.column_names:
            columns = ", ".join(rows.column_names)
            raise InputError(f"{setting} = {column!r} is not a column of {self.path}: it has {columns}.")

    def _splits_of(self, loaded: dict[str, Any]) -> dict[str, Any]:
        """Returns the dataset of each split; the chosen one as ``train``."""
        if self.split is not None:
            if self.split not in loaded:
                raise InputError(f"split = {self.split!r} is not in {self.path}: it has {', '.join(loaded)}.")
            return {"train": loaded[self.split]}
        if "train" not in loaded:
            raise InputError(f"{self.path} has no split train, but {', '.join(loaded)}: set split.")
        return {SPLITS[name]: rows for name, rows in loaded.items() if name in SPLITS}
