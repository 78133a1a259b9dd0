"""Image folders."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import error_of, fit_images, image_folder, set_up, write_image_folder
from PIL import Image

from lit_ddpm.data import ImageTensors


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_with_a_subfolder_for_each_class(in_memory):
    write_image_folder("images")
    data = set_up(image_folder(in_memory=in_memory))
    assert data.image_shape == (3, 10, 8)
    assert data.classes == ["class_0", "class_1"]
    assert data.num_classes == 2
    splits = data.splits()
    seen = []
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        images, labels = splits[split].__getitems__(range(count))
        assert images.dtype == torch.uint8
        assert images.shape == (count, 3, 10, 8)
        assert torch.equal(labels, images[:, 0, 0, 0] % 2)
        seen += images[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(12))
    assert isinstance(splits["train"], ImageTensors) == in_memory
    assert (data.train_histogram() is None) == (not in_memory)
    assert fit_images(data).global_step == 2


def test_a_flat_folder_has_no_classes():
    write_image_folder("images", classes=0)
    data = set_up(image_folder())
    assert data.num_classes is None
    assert set(data.splits()["train"].labels.tolist()) == {0}


def test_unusable_folders_are_one_sentence(capsys):
    Path("empty").mkdir()
    args = ["fit", "--data=lit_ddpm.data.ImageFolderDataModule"]
    assert "root = empty of ImageFolderDataModule has no images" in error_of(capsys, [*args, "--data.root=empty"])
    assert "root = nowhere of ImageFolderDataModule is not a folder" in error_of(capsys, [*args, "--data.root=nowhere"])
    write_image_folder("images")
    message = error_of(capsys, [*args, "--data.root=images", "--data.val_size=12"])
    assert "test_size = 1, val_size = 12 must each be at least 1 and leave at least one of the 12 images" in message
    assert "Option 'image_siez' is not accepted" in error_of(
        capsys, [*args, "--data.root=images", "--data.image_siez=3"]
    )
    for name, value in (("channels", 2), ("image_size", 0), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name} = {value} of ImageFolderDataModule must"):
            image_folder(**{name: value})


def test_shares_of_a_folder_without_splits(caplog):
    write_image_folder("images", count=40)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        set_up(image_folder(val_size=None, test_size=None))
    assert "32 train, 4 val, 4 test images" in caplog.text
    assert {name: len(split) for name, split in image_folder(val_size=None).splits().items()} == {
        "train": 34,
        "val": 4,
        "test": 2,
    }


@pytest.mark.parametrize("val", ["val", "valid", "Validation", None])
def test_a_folder_with_splits(val):
    for split, count in (("train", 20), (val, 6), ("test", 8)):
        if split is not None:
            write_image_folder(f"images/{split}", count=count)
    data = set_up(image_folder(val_size=None, test_size=None))
    assert data.classes == ["class_0", "class_1"]
    sizes = {name: len(split) for name, split in data.splits().items()}
    assert sizes == ({"train": 18, "val": 2, "test": 8} if val is None else {"train": 20, "val": 6, "test": 8})
    assert sorted(data.splits()["test"].images[:, 0, 0, 0].tolist()) == list(range(8))


def test_splits_without_classes_and_with_missing_ones():
    write_image_folder("flat/train", classes=0)
    write_image_folder("flat/test", count=3, classes=0)
    assert set_up(image_folder("flat")).num_classes is None
    write_image_folder("one/train", classes=3)
    write_image_folder("one/test", classes=2)
    data = set_up(image_folder("one"))
    assert data.num_classes == 3
    assert set(data.splits()["test"].labels.tolist()) == {0, 1}


@pytest.mark.parametrize("folders", [("train", "other"), ("val", "test")])
def test_a_folder_that_is_half_split_is_refused(folders):
    for folder in folders:
        write_image_folder(f"images/{folder}", classes=0)
    with pytest.raises(ValueError, match="either all are splits"):
        set_up(image_folder())


def test_hidden_files_are_skipped():
    write_image_folder("images")
    for hidden in ("images/._000.png", "images/class_0/.trash.png", "images/__MACOSX/000.png", "images/.git/000.png"):
        Path(hidden).parent.mkdir(exist_ok=True)
        Path(hidden).write_bytes(b"\0\5\26\7")
    assert set_up(image_folder()).classes == ["class_0", "class_1"]


def test_images_are_in_the_order_of_their_paths():
    """Paths are compared folder by folder: the folder ``a`` precedes the file ``a-1.png`` although "-" precedes "/"."""
    names = ["a/b.png", "a-1/x.JPG", "a-1/y/z.png", "a/b/10.png", "a/b/9.tif", "a/b-c/1.png", "B/é.png", "a/b.d/1.png"]
    for name in names:
        Path("images", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(Path("images", name))
    data = image_folder(val_size=1, test_size=1)
    images = data.find()["train"]
    assert [images.name(row) for row in images.rows] == [str(path) for path in sorted(Path("images", n) for n in names)]
    assert [data.classes[label] for label in images.labels] == ["B", "a", "a", "a", "a", "a", "a-1", "a-1"]


def test_rows_of_files_share_memory_between_processes():
    write_image_folder("images")
    rows = image_folder().find()["train"].rows
    assert rows.dtype == np.dtype("S22")
    assert rows[0] == b"images/class_0/000.png"


def test_a_change_of_a_file_changes_the_fingerprint():
    write_image_folder("images")
    fingerprints = {image_folder(in_memory=False).splits()["train"].fingerprint() for _ in range(2)}
    for path in Path("images").rglob("*.png"):
        os.utime(path, ns=(1, 1))
    fingerprints.add(image_folder(in_memory=False).splits()["train"].fingerprint())
    fingerprints.add(image_folder(in_memory=False, background="black").splits()["train"].fingerprint())
    assert len(fingerprints) == 3


def test_folders_behind_symbolic_links_are_read():
    write_image_folder("elsewhere", classes=0, count=6)
    write_image_folder("images/own", classes=0, count=6)
    Path("images/linked").symlink_to(Path("elsewhere").absolute(), target_is_directory=True)
    assert set_up(image_folder()).classes == ["linked", "own"]
