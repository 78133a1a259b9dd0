"""Images that are decoded from files, in memory and streamed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import RNG, fit_images, image_folder, set_up, write_image_folder
from PIL import Image

from lit_ddpm.callbacks import SampleMetrics


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
        (lambda: Image.new("I;16", (8, 10)).save("images/class_0/bad.png"), r"class_0/bad.png has mode I;16"),
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


def test_a_truncated_image_is_named():
    write_image_folder("images", count=12, size=(64, 64))
    path = Path("images/class_1/005.png")
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"class_1/005.png is damaged .*remove it"):
        image_folder().setup("fit")
    streamed = set_up(image_folder(in_memory=False))
    (holder,) = (split for split in streamed.splits().values() if path in split.rows)
    with pytest.raises(ValueError, match=r"class_1/005.png is damaged"):
        holder.__getitems__(range(len(holder)))
