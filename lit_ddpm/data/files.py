"""Images in a folder, of any size and number."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lit_ddpm.data.decoded import DecodedDataModule, DecodedImages

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFiles(DecodedImages):
    """Image files; a row is a path."""

    def open(self, row: Path) -> Image.Image:
        """See `DecodedImages.open`."""
        return Image.open(row)

    def name(self, row: Path) -> str:
        """See `DecodedImages.name`."""
        return str(row)

    def fingerprint(self) -> str:
        """The SHA-256 of the files' names, sizes and times, and of what is done to them."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.rows]
        return hashlib.sha256(repr((stats, self.image_size, self.channels)).encode()).hexdigest()


class ImageFolderDataModule(DecodedDataModule):
    """The images of a folder and of the folders in it; those of each subfolder are a class, if there are subfolders.

    Args:
        root: The folder.
        **settings: See `DecodedDataModule`.

    Attributes:
        classes: The names of the subfolders, whose order numbers the classes.

    Raises:
        ValueError: In `setup`, if the folder is not there or has no images; see `DecodedDataModule` too.
    """

    def __init__(self, root: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)
        self.classes: list[str] = []

    def find(self) -> tuple[type[DecodedImages], Sequence[Any], Tensor]:
        """See `DecodedDataModule.find`."""
        if not self.root.is_dir():
            raise ValueError(f"root = {self.root} of ImageFolderDataModule is not a folder.")
        paths = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not paths:
            raise ValueError(f"root = {self.root} of ImageFolderDataModule has no images ({', '.join(EXTENSIONS)}).")
        folders = [path.relative_to(self.root).parts[0] if path.parent != self.root else "" for path in paths]
        self.classes = sorted(set(folders))
        if "" in self.classes and len(self.classes) > 1:
            stray = paths[folders.index("")]
            raise ValueError(f"{stray} lies beside the folder {self.classes[1]}, which is a class: move one of them.")
        self.num_classes = len(self.classes) if "" not in self.classes else None
        return ImageFiles, paths, torch.tensor([self.classes.index(folder) for folder in folders])
