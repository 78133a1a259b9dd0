"""Images in a folder, of any size and number."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typing_extensions import override

from lit_ddpm.data.decoded import DecodedDataModule, DecodedImages

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
        return hashlib.sha256(repr((stats, self.image_size, self.channels)).encode()).hexdigest()


class ImageFolderDataModule(DecodedDataModule):
    """The images of a folder and its subfolders; each direct subfolder is a class.

    Args:
        root: The folder.
        **settings: See `DecodedDataModule`.

    Attributes:
        classes: The names of the subfolders; the position in the list is the label.
    """

    def __init__(self, root: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)
        self.classes: list[str] = []

    @override
    def find(self) -> ImageFiles:
        if not self.root.is_dir():
            raise ValueError(f"root = {self.root} of ImageFolderDataModule is not a folder.")
        paths = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not paths:
            raise ValueError(f"root = {self.root} of ImageFolderDataModule has no images ({', '.join(EXTENSIONS)}).")
        folders = [path.relative_to(self.root).parts[0] if path.parent != self.root else "" for path in paths]
        self.classes = sorted(set(folders))
        if "" in self.classes and len(self.classes) > 1:
            stray = paths[folders.index("")]
            raise ValueError(f"{stray} is next to the folder {self.classes[1]}, which is a class: move one of them.")
        self.num_classes = len(self.classes) if "" not in self.classes else None
        labels = torch.tensor([self.classes.index(folder) for folder in folders])
        return ImageFiles(paths, labels, self.image_size, self.channels)
