"""Small files in the formats of real sets."""

import pickle
import struct
from pathlib import Path

import numpy as np
from torchvision import datasets

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
    """The pickled batches of CIFAR-10 or CIFAR-100; torchvision's check sums are those of the real files."""
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
