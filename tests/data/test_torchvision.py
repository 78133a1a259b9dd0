"""torchvision's datasets, from small files in their formats."""

from urllib.error import URLError

import numpy as np
import pytest
from helpers import error_of, fit_images, set_up, write_cifar, write_mnist

from lit_ddpm.data import TorchvisionDataModule


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_from_its_files(name):
    written = write_mnist("data", name)
    data = set_up(TorchvisionDataModule(name, val_size=10, batch_size=8))
    assert data.image_shape == (1, 28, 28)
    assert (data.levels, data.num_classes) == (256, 10)
    splits = data.splits()
    assert {split: len(images) for split, images in splits.items()} == {"train": 50, "val": 10, "test": 12}
    assert np.array_equal(splits["test"].images[:, 0].numpy(), written["t10k"])
    together = np.concatenate([splits["val"].images[:, 0], splits["train"].images[:, 0]])
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in written["train"])
    assert fit_images(data).global_step == 6


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_from_its_files(monkeypatch, classes):
    rows = write_cifar("data", monkeypatch, classes)
    data = set_up(TorchvisionDataModule(f"CIFAR{classes}", val_size=10, batch_size=4, flip=True))
    assert data.image_shape == (3, 32, 32)
    assert data.num_classes == classes
    splits = data.splits()
    test = rows["test_batch" if classes == 10 else "test"]
    assert np.array_equal(splits["test"].images.numpy(), test)
    assert splits["train"].images.is_contiguous()
    assert fit_images(data).global_step == (len(rows) - 1) * 20 // 4 - 3


def test_a_missing_dataset_is_one_sentence(monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    for name in ("MNIST", "CIFAR10"):
        with pytest.raises(ValueError, match=rf"{name} is missing or damaged .* = nowhere, and was not downloaded"):
            TorchvisionDataModule(name, root="nowhere").prepare_data()
        with pytest.raises(ValueError, match=rf"{name} is missing or damaged in root = nowhere"):
            TorchvisionDataModule(name, root="nowhere", download=False).splits()
    with pytest.raises(ValueError, match="dataset = 'SVHN' of TorchvisionDataModule must be one of MNIST"):
        TorchvisionDataModule("SVHN")
    args = ["fit", "--data=lit_ddpm.data.TorchvisionDataModule", "--data.dataset=MNIST", "--data.root=nowhere"]
    assert "MNIST is missing or damaged in root = nowhere" in error_of(capsys, args)
    assert "data" in error_of(capsys, [*args[:2], "--data.dataset=EMNIST"])
