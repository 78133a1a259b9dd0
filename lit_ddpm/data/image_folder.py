"""Images in a folder, of any size and number."""

import hashlib
import os
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm.data.base import SPLITS
from lit_ddpm.data.decoded import DecodedDataModule
from lit_ddpm.data.decoded_images import DecodedImages

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFiles(DecodedImages):
    """Image files; a row is a path as bytes. The fingerprint contains names, sizes and modification times."""

    @override
    def open(self, row: bytes) -> Image.Image:
        return Image.open(os.fsdecode(row))

    @override
    def name(self, row: bytes) -> str:
        return str(Path(os.fsdecode(row)))

    @override
    def content(self, row: bytes) -> bytes:
        return Path(os.fsdecode(row)).read_bytes()

    @override
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.decoding).encode())
        for row in self.rows:
            stat = os.stat(row)
            digest.update(repr((os.path.basename(row), stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()


class ImageFolderDataModule(DecodedDataModule):
    """The images of a folder and its subfolders; each direct subfolder is a class.

    Direct subfolders called ``train``, ``val`` (or ``valid``, ``validation``) and ``test`` are splits, and their
    subfolders are the classes; a missing split is chosen from ``train``. Hidden files are skipped.

    Args:
        root: The folder.
        **settings: See `DecodedDataModule`.

    Attributes:
        classes: The names of the classes; the position in the list is the label.
    """

    def __init__(self, root: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)
        self.classes: list[str] = []

    @override
    def find(self) -> dict[str, ImageFiles]:
        if not self.root.is_dir():
            raise InputError(f"root = {self.root} of ImageFolderDataModule is not a folder.")
        found: dict[str, list[tuple[str, str]]] = {}
        for split, folder in self._split_folders().items():
            found[split] = list(_images_in(folder))
            if not found[split]:
                raise InputError(f"root = {folder} of ImageFolderDataModule has no images ({', '.join(EXTENSIONS)}).")
        images = [image for split in found.values() for image in split]
        self.classes = sorted({name for _, name in images})
        if "" in self.classes and len(self.classes) > 1:
            stray = next(Path(path) for path, name in images if not name)
            raise InputError(f"{stray} is next to the folder {self.classes[1]}, which is a class: move one of them.")
        self.num_classes = len(self.classes) if "" not in self.classes else None
        labels = {name: label for label, name in enumerate(self.classes)}
        return {
            split: ImageFiles(
                np.array([os.fsencode(path) for path, _ in images]),
                torch.tensor([labels[name] for _, name in images]),
                self.decoding,
            )
            for split, images in found.items()
        }

    def _split_folders(self) -> dict[str, Path]:
        """Returns the folder of each split; the root as ``train`` if its subfolders are classes.

        Raises:
            ValueError: If some subfolders are splits and others are not.
        """
        folders = [path for path in sorted(self.root.iterdir()) if path.is_dir() and not _is_hidden(path.name)]
        splits = {SPLITS[path.name.lower()]: path for path in folders if path.name.lower() in SPLITS}
        if not splits:
            return {"train": self.root}
        names = ", ".join(path.name for path in folders)
        if len(splits) < len(folders) or "train" not in splits:
            raise InputError(
                f"root = {self.root} of ImageFolderDataModule has the folders {names}: either all are splits (train, "
                "val, test; at least train), or none is."
            )
        return splits


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _images_in(folder: str | Path, class_name: str = "") -> Iterator[tuple[str, str]]:
    """Yields the path of each image in a folder with the name of the direct subfolder that it is in, by path."""
    with os.scandir(folder) as entries:
        shown = sorted((entry for entry in entries if not _is_hidden(entry.name)), key=attrgetter("name"))
    for entry in shown:
        if entry.is_dir():
            yield from _images_in(entry.path, class_name or entry.name)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
            yield entry.path, class_name
