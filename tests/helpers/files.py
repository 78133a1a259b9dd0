"""Small files in the formats of published datasets."""

import csv
import hashlib
import os
import pickle
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets

from helpers.models import TinyNetwork
from helpers.training import tiny_module, trainer
from lit_ddpm.data import ImageFolderDataModule
from lit_ddpm.data.image_folder import ImageFiles

RNG = np.random.default_rng(0)


def write_mnist(root, name="MNIST", train=60, test=12):
    """The four idx files of MNIST and of FashionMNIST."""
    raw = Path(root) / name / "raw"
    raw.mkdir(parents=True)
    written = {}
    for stem, count in (("train", train), ("t10k", test)):
        images, labels = RNG.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
        written[stem] = images
    return written


def write_cifar(root, monkeypatch, classes=10):
    """The pickled batches of CIFAR-10 or CIFAR-100; torchvision's checksums are those of the real files."""
    kind = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    folder = Path(root) / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"
    rows = {}
    for name, _ in [*kind.train_list, *kind.test_list]:
        pixels = RNG.integers(0, 256, (20, 3072), np.uint8)
        rows[name] = pixels.reshape(20, 3, 32, 32)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, key: [i % classes for i in range(20)]}))
    names = [str(i) for i in range(classes)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "_check_integrity", lambda self: folder.is_dir())
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    return rows


def write_image_folder(root, count=12, classes=2, size=(10, 8), mode="RGB"):
    """Images of one size in a subfolder for each class; the first channel of image i is i."""
    for number in range(count):
        folder = Path(root) / (f"class_{number % classes}" if classes else "")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((*size, 3) if mode == "RGB" else size, number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


class FailingFile(ImageFiles):
    """A user's own reader with a fault."""

    def open(self, row):
        raise RuntimeError("mine")


class FailingFiles(ImageFolderDataModule):
    """A data module with that reader; the headers are read by the package."""

    def splits(self):
        splits = super().splits()
        train = splits["train"]
        return {**splits, "train": FailingFile(*(getattr(train, field.name) for field in fields(train)))}


def image_folder(root="images", **kwargs) -> ImageFolderDataModule:
    return ImageFolderDataModule(root, **{"val_size": 2, "test_size": 2, "batch_size": 4, **kwargs})


def set_up(data):
    data.setup("fit")
    return data


def fit_images(data, **kwargs):
    """Fits a tiny module to images of any shape for one epoch."""
    module = tiny_module(network=TinyNetwork(data.image_shape[0], num_steps=20))
    run = trainer(max_epochs=1, limit_val_batches=1, **kwargs)
    run.fit(module, data)
    return run


def run_files(directory) -> dict[str, bytes]:
    """The contents of the files of a run, by name, without times."""
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.*")}
    rows = read_csv(directory / "metrics.csv")
    values = [{key: x for key, x in row.items() if x and not key.startswith("perf/")} for row in rows]
    return files | {"metrics.csv": repr(values).encode()}


def read_csv(path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Malicious:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch evil_was_here",))
