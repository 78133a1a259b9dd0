"""Images in a folder, of any size and number."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typing_extensions import override

from lit_ddpm.data.decoded import SPLITS, DecodedDataModule, DecodedImages

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFiles(DecodedImages):
    """Image files; a row is a path. The fingerprint contains names, sizes and modification times."""

    @override
    def open(self, row: Path) -> Image.Image:
        return Image.open(row)

    @override
    def name(self, row: Path) -> str:
        return str(row)

    @override
    def fingerprint(self) -> str:
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.rows]
        return hashlib.sha256(repr((stats, self.image_size, self.channels, self.background)).encode()).hexdigest()


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
            raise ValueError(f"root = {self.root} of ImageFolderDataModule is not a folder.")
        found: dict[str, list[tuple[Path, str]]] = {}
        for split, folder in self._split_folders().items():
            found[split] = [(path, _class_of(path, folder)) for path in _images_in(folder)]
            if not found[split]:
                raise ValueError(f"root = {folder} of ImageFolderDataModule has no images ({', '.join(EXTENSIONS)}).")
        images = [image for split in found.values() for image in split]
        self.classes = sorted({name for _, name in images})
        if "" in self.classes and len(self.classes) > 1:
            stray = next(path for path, name in images if not name)
            raise ValueError(f"{stray} is next to the folder {self.classes[1]}, which is a class: move one of them.")
        self.num_classes = len(self.classes) if "" not in self.classes else None
        settings = (self.image_size, self.channels, self.background)
        return {
            split: ImageFiles([p for p, _ in rows], torch.tensor([self.classes.index(n) for _, n in rows]), *settings)
            for split, rows in found.items()
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
            raise ValueError(
                f"root = {self.root} of ImageFolderDataModule has the folders {names}: either all are splits (train, "
                "val, test; at least train), or none is."
            )
        return splits


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _images_in(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    return sorted(path for path in found if not any(map(_is_hidden, path.relative_to(folder).parts)))


def _class_of(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""
