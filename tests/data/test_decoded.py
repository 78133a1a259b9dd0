"""Images that are decoded from files, in memory and streamed."""

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import RNG, fit_images, image_folder, set_up, write_image_folder
from PIL import Image, ImageFile

from lit_ddpm.callbacks import SampleMetrics
from lit_ddpm.data.decoded_images import DecodedImages


def test_images_are_resized_and_converted():
    write_image_folder("images", count=6, size=(20, 10))
    write_image_folder("images/class_2", count=6, classes=0, size=(9, 30), mode="L")
    for channels in (1, 3):
        data = set_up(image_folder(image_size=8, channels=channels))
        images = data.splits()["train"].images
        assert images.shape == (8, channels, 8, 8)
        assert set(images.flatten(1).double().std(1).tolist()) == {0.0}


def test_streaming_reads_with_workers_and_gives_the_same():
    write_image_folder("images", count=20)
    runs = []
    for settings in ({"in_memory": True}, {"in_memory": False, "num_workers": 2}):
        data = set_up(image_folder(**settings))
        loader = data.train_dataloader()
        loader.sampler.set_epoch(3)
        runs.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(*runs)


def test_a_streamed_folder_can_be_evaluated():
    write_image_folder("images", count=40)
    extractor = torch.nn.Flatten()
    callback = SampleMetrics(extractor, num_samples=8, num_val_samples=8, kid_subsets=2)
    data = set_up(image_folder(in_memory=False, image_size=4))
    fit_images(data, callbacks=[callback])
    before = data.fingerprint()
    assert set_up(image_folder(in_memory=False, image_size=5)).fingerprint() != before


def frames(path):
    first, second = (Image.new("RGB", (8, 10), color) for color in ("red", "blue"))
    first.save(path, save_all=True, append_images=[second])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: Path("images/class_0/bad.png").write_bytes(b"no image"), r"class_0/bad.png is damaged .*remove it"),
        (lambda: Image.new("I;16", (8, 10)).save("images/class_0/bad.png"), r"bad.png is 16-bit .*/000.png is not"),
        (lambda: Image.new("F", (8, 10)).save("images/class_0/bad.tif"), r"class_0/bad.tif has mode F"),
        (lambda: frames("images/class_0/bad.tif"), r"class_0/bad.tif has 2 frames: animated and multi-page"),
        (lambda: frames("images/class_0/bad.png"), r"class_0/bad.png has 2 frames"),
        (
            lambda: Image.new("RGB", (8, 11)).save("images/class_0/bad.png"),
            r"image_size = None .*8x10 .*8x11.*set image",
        ),
        (lambda: Image.new("RGB", (8, 10)).save("images/bad.png"), r"bad.png is next to the folder class_0"),
    ],
)
def test_an_unusable_image_is_named_in_setup(capsys, spoil, message):
    write_image_folder("images")
    spoil()
    with pytest.raises(ValueError, match=message):
        image_folder().setup("fit")


def truncate(*paths):
    """Overwrites images with the first bytes of one, whose header is intact."""
    for path in map(Path, paths):
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])


def test_a_truncated_image_is_named():
    write_image_folder("images", count=12, size=(64, 64))
    truncate("images/class_1/005.png")
    with pytest.raises(ValueError, match=r"class_1/005.png is damaged .*remove it"):
        image_folder().setup("fit")
    streamed = set_up(image_folder(in_memory=False))
    (holder,) = (split for split in streamed.splits().values() if b"images/class_1/005.png" in split.rows)
    with pytest.raises(ValueError, match=r"class_1/005.png is damaged"):
        holder.__getitems__(range(len(holder)))


def test_damaged_images_are_left_out():
    write_image_folder("images", size=(64, 64))
    truncate("images/class_1/005.png", "images/class_0/006.png")
    Path("images/class_0/008.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"^3 damaged images are left out: images/class_0/008.png, images/") as caught:
        splits = image_folder(skip_damaged=True).splits()
    assert len(caught) == 1
    levels = torch.cat([split.images[:, 0, 0, 0] for split in splits.values()])
    labels = torch.cat([split.labels for split in splits.values()])
    assert sorted(levels.tolist()) == [0, 1, 2, 3, 4, 7, 9, 10, 11]
    assert torch.equal(labels, levels % 2)
    with pytest.warns(UserWarning, match=r"^1 damaged images are left out: images/class_0/008.png\.$"):
        streamed = image_folder(skip_damaged=True, in_memory=False).splits()
    assert sum(map(len, streamed.values())) == 11


def test_many_damaged_images_are_counted():
    write_image_folder("images", count=40)
    for path in sorted(Path("images").rglob("*.png"))[:15]:
        path.write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"^15 damaged images are left out: (\S+, ){10}5 more\.$"):
        image_folder(skip_damaged=True).splits()


def test_other_images_are_refused_although_damaged_ones_are_skipped():
    write_image_folder("images")
    frames("images/class_0/bad.png")
    with pytest.raises(ValueError, match=r"bad\.png has 2 frames"):
        image_folder(skip_damaged=True).splits()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_split_of_damaged_images_is_one_sentence(in_memory):
    for split in ("train", "val", "test"):
        write_image_folder(f"images/{split}", size=(64, 64), count=4)
    truncate(*Path("images/val").rglob("*.png"))
    if in_memory:
        with pytest.raises(ValueError, match=r"^all 4 images of the val split are damaged: images/val/class_0/000.png"):
            image_folder(skip_damaged=True).splits()
    else:
        val = image_folder(skip_damaged=True, in_memory=False).splits()["val"]
        with pytest.raises(ValueError, match=r"^all 4 images of a split are damaged: images/val/class_0/000.png"):
            val.__getitems__([2])


def test_a_damaged_streamed_image_is_replaced_by_the_next():
    for split in ("train", "val", "test"):
        write_image_folder(f"images/{split}", size=(64, 64), classes=0, count=6)
    truncate("images/train/002.png", "images/train/003.png", "images/train/005.png")
    split = set_up(image_folder(skip_damaged=True, in_memory=False, check_overlap=False)).splits()["train"]
    split.labels[:] = torch.arange(6)
    images, labels = split.__getitems__([1, 2, 5, 4, 3])
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [1, 4, 0, 4, 4]
    assert split.newly_damaged() == [f"images/train/{name}.png" for name in ("002", "003", "005")]
    assert split.newly_damaged() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_replaced_images_are_counted_in_warnings(num_workers):
    for split in ("train", "val", "test"):
        write_image_folder(f"images/{split}", size=(8, 8), classes=0)
    damaged = ["images/train/003.png", "images/train/007.png"]
    data = set_up(image_folder(skip_damaged=True, in_memory=False, num_workers=num_workers))
    for path in damaged:
        Path(path).write_bytes(b"no image")
    with pytest.warns(UserWarning, match="damaged images are replaced") as caught:
        assert fit_images(data).global_step == 3
    found = [str(w.message) for w in caught if "damaged images are replaced" in str(w.message)]
    assert re.match(
        r"2 damaged images are replaced by the next of their split; new: images/train/00[37].png", found[-1]
    )
    assert all(sum(path in message for message in found) == 1 for path in damaged)


def test_each_image_in_memory_is_decoded_once(monkeypatch):
    write_image_folder("images")
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda file: decoded.append(file.tile != []) or load(file))
    image_folder(in_memory=False, check_overlap=True).splits()
    assert sum(decoded) == 0
    image_folder().splits()
    assert sum(decoded) == 12


def test_images_that_splits_share_are_reported():
    write_image_folder("images/train", classes=0)
    write_image_folder("images/val/", classes=0, count=3)
    Image.new("RGB", (8, 10), "red").save("images/val/100.png")
    Path("images/test").mkdir()
    shutil.copy("images/val/100.png", "images/test/a.png")
    Image.new("RGB", (8, 10), "blue").save("images/test/b.png")
    with pytest.warns(UserWarning, match="images are also") as caught:
        image_folder().splits()
    assert [str(warning.message) for warning in caught] == [
        "3 val images are also train images, such as images/val/000.png = images/train/000.png.",
        "1 test images are also val images, such as images/test/a.png = images/val/100.png.",
    ]


@pytest.mark.parametrize(
    ("settings", "checked"),
    [
        ({"in_memory": True}, True),
        ({"in_memory": False}, False),
        ({"in_memory": True, "check_overlap": False}, False),
        ({"in_memory": False, "check_overlap": True}, True),
    ],
)
def test_the_check_of_shared_images_is_an_option(settings, checked):
    for split in ("train", "val", "test"):
        write_image_folder(f"images/{split}", classes=0, count=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image_folder(**settings).splits()
    assert len(caught) == (3 if checked else 0)


def test_a_users_images_are_compared_by_their_pixels():
    write_image_folder("images", count=4)
    images = image_folder().find()["train"]
    contents = [DecodedImages.content(images, row) for row in images.rows]
    assert len(set(contents)) == 4
    assert contents[0] == np.zeros((10, 8, 3), np.uint8).tobytes()


def test_many_images_are_read_in_order():
    """More images than tasks: each task reads several."""
    Path("images").mkdir()
    for number in range(2100):
        Image.new("RGB", (1, 1), (number % 256, 0, 0)).save(f"images/{number:04d}.png")
    images = image_folder().find()["train"]
    assert images.rows.dtype.kind == "S"
    seen = []
    assert images.for_each(
        images.read, lambda index, levels: seen.append((index, int(levels[0, 0, 0]))), "reading"
    ).all()
    assert seen == [(i, i % 256) for i in range(2100)]
