"""Images of any mode, orientation and transparency."""

import numpy as np
import pytest
import torch
from helpers import RNG, image_folder, set_up
from PIL import Image

from lit_ddpm.data.image_modes import check_image, convert_image

COLOR = Image.fromarray(RNG.integers(0, 256, (8, 6, 3), np.uint8))
SUFFIXES = {"CMYK": "jpg", "YCbCr": "jpg", "LAB": "tif", "RGBX": "tif"}


def folder(image, suffix="png", **settings):
    """A data module of eight copies of an image, for training, validation and testing."""
    for number in range(8):
        image.save(f"{number}.{suffix}", **({"exif": image.getexif()} if suffix == "jpg" else {}))
    return set_up(image_folder(".", val_size=1, test_size=1, **settings))


def pixels(data) -> torch.Tensor:
    return data.splits()["train"].images[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
@pytest.mark.parametrize("target", ["L", "RGB"])
def test_every_mode_of_eight_bits_is_converted(mode, target):
    image = COLOR.convert("P" if mode == "PA" else "RGB").convert(mode)
    size, conversion = check_image(image)
    converted = convert_image(image, target, "white")
    assert size == converted.size == (6, 8)
    assert converted.mode == target
    assert (conversion is None) == (mode in ("L", "RGB"))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_modes_of_more_bits_are_refused(mode):
    with pytest.raises(ValueError, match=f"has mode {mode}: images must have 8 bits"):
        check_image(Image.new(mode, (6, 8)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "RGBX"])
def test_files_of_every_mode_are_read(mode):
    data = folder(COLOR.convert(mode), SUFFIXES.get(mode, "png"))
    assert data.image_shape == (3, 8, 6)
    if mode in ("RGB", "RGBA"):
        assert torch.equal(pixels(data), torch.from_numpy(np.array(COLOR)).permute(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("in_memory", [True, False])
def test_photographs_are_upright(orientation, in_memory):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # the upper left quarter
    inverse = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(inverse)
    stored = Image.fromarray(upright) if turn is None else Image.fromarray(upright).transpose(turn)
    stored.getexif()[0x0112] = orientation
    data = folder(stored, "jpg", in_memory=in_memory)
    assert data.image_shape == (3, 16, 32)
    images, _ = data.splits()["train"].__getitems__([0])
    assert images[0, :, 1:7, 1:15].min() > 200
    assert images[0, :, 9:, 17:].max() < 55


def test_transparent_pixels_show_the_background(caplog):
    image = Image.new("RGBA", (6, 8), (10, 20, 30, 0))
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        assert set(pixels(folder(image)).flatten().tolist()) == {255}
    assert "Images are converted to 8 bits: 8 color with transparency; transparent pixels show white" in caplog.text
    assert pixels(folder(image, background="#0000ff"))[:, 0, 0].tolist() == [0, 0, 255]
    half = Image.new("LA", (6, 8), (100, 128))
    assert int(pixels(folder(half, background="black"))[0, 0, 0]) == 50
    palette = Image.new("P", (6, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.info["transparency"] = 1
    assert pixels(folder(palette))[:, 0, 0].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="background = 'transparent' of ImageFolderDataModule must be a color"):
        image_folder(background="transparent")
