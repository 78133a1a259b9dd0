"""Images of any mode, orientation and transparency."""

import struct
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import RNG, image_folder, set_up
from PIL import Image

from lit_ddpm.data.image_modes import convert_image, read_header

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
    header = read_header(image, "name")
    converted = convert_image(image, target, "white")
    assert (header.name, header.size, header.levels) == ("name", (8, 6), 256)
    assert converted.size == (6, 8)
    assert converted.mode == target
    assert (header.conversion is None) == (mode in ("L", "RGB"))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_of_32_bits_are_refused(mode):
    with pytest.raises(ValueError, match=f"has mode {mode}: images must have 8 bits, or 16 in grayscale .ArrayData"):
        read_header(Image.new(mode, (6, 8)), "name")


def test_every_mode_of_pillow_is_used_or_refused():
    used = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
    used += ["I;16", "I;16B", "I;16L", "I;16N"]
    assert {*used, "I", "F"} == set(Image.MODES)
    for mode in used:
        read_header(Image.new(mode, (6, 8)), "name")


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


LEVELS = RNG.integers(0, 65_536, (8, 6), np.uint16)


def write_tiff(path, pixels, bits=16, photometric=1, signed=False, orientation=1):
    """Writes an uncompressed TIFF file of one or more channels in the byte order of the array."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width, channels = (*pixels.shape, 1)[:3]
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 274: orientation, 277: channels}
    tags |= {278: height, 279: pixels.nbytes, 339: 2 if signed else 1}
    start = 10 + 12 * len(tags) + 4
    extra, entries = b"", b""
    for tag, value in tags.items():
        if tag in (258, 339) and channels > 2:  # a value for each channel, which the entry points to
            entries += struct.pack(f"{order}HHII", tag, 3, channels, start + len(extra))
            extra += struct.pack(f"{order}{channels}H", *[value] * channels)
        elif tag in (273, 279):
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value or start + 12)
        else:
            entries += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(tags))
    Path(path).write_bytes(header + entries + bytes(4) + extra.ljust(12, b"\0") + pixels.tobytes())


def write_png(path, pixels, color, transparent=None):
    """Writes a PNG file of 16 bits; `color` is the PNG's code for its channels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, color, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    hidden = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    body = chunk(b"IHDR", header) + hidden + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_pgm(path, pixels, largest=65_535):
    magic = b"P6" if pixels.ndim == 3 else b"P5"
    header = b"%s %d %d %d\n" % (magic, pixels.shape[1], pixels.shape[0], largest)
    Path(path).write_bytes(header + pixels.astype(">u2").tobytes())


def copies(write, suffix):
    """Writes a file eight times."""
    for number in range(8):
        write(f"{number}.{suffix}")
    return image_folder(".", val_size=1, test_size=1)


GRAYSCALE = {
    "png": lambda path: Image.fromarray(LEVELS).save(path),
    "tif": lambda path: Image.fromarray(LEVELS).save(path),
    "deflated.tif": lambda path: Image.fromarray(LEVELS).save(path, compression="tiff_adobe_deflate"),
    "little.tif": lambda path: write_tiff(path, LEVELS),
    "big.tif": lambda path: write_tiff(path, LEVELS.astype(">u2")),
    "pgm": lambda path: write_pgm(path, LEVELS),
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", GRAYSCALE)
def test_16_bit_grayscale_keeps_its_levels(kind, in_memory):
    copies(GRAYSCALE[kind], kind)
    data = set_up(image_folder(".", in_memory=in_memory))
    assert (data.levels, data.image_shape) == (65_536, (1, 8, 6))
    images, _ = data.splits()["train"].__getitems__([0, 3])
    assert images.dtype == torch.uint16
    assert np.array_equal(images.numpy(), np.stack([LEVELS[None]] * 2))


def test_largest_levels_of_pgm_files_are_scaled():
    pixels = np.full((8, 6), 1023, np.uint16)
    data = set_up(copies(lambda path: write_pgm(path, pixels, largest=1023), "pgm"))
    assert data.levels == 65_536
    assert set(data.splits()["train"].images.flatten().tolist()) == {65_535}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
def test_tiff_files_are_upright(orientation, dtype):
    stored = (LEVELS % 256).astype(dtype)
    write = partial(write_tiff, pixels=stored, bits=8 * stored.itemsize, orientation=orientation)
    data = set_up(copies(write, "tif"))
    flipped = {1: [], 2: [1], 3: [0, 1], 4: [0], 5: [], 6: [0], 7: [0, 1], 8: [1]}[orientation]
    upright = np.flip(stored, flipped).T if orientation > 4 else np.flip(stored, flipped)
    assert data.image_shape[1:] == upright.shape
    assert np.array_equal(pixels(data)[0].numpy(), upright)


@pytest.mark.parametrize("color", ["white", "#404040"])
def test_transparent_16_bit_pixels_show_the_background(caplog, color):
    hidden = np.eye(8, 6, dtype=bool)
    shown = np.maximum(LEVELS, 8)
    copies(partial(write_png, pixels=np.where(hidden, 7, shown), color=0, transparent=7), "png")
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        data = set_up(image_folder(".", background=color))
    behind = {"white": 65_535, "#404040": 0x4040}[color]
    assert np.array_equal(pixels(data)[0].numpy(), np.where(hidden, behind, shown))
    assert f"Images are converted to 16 bits: 8 transparency; transparent pixels show {color}" in caplog.text


def test_16_bit_images_are_resized_without_loss_of_levels():
    smooth = np.linspace(0, 65_535, 40 * 20).reshape(40, 20).astype(np.uint16)
    copies(lambda path: Image.fromarray(smooth).save(path), "png")
    data = set_up(image_folder(".", image_size=10))
    resized = pixels(data)[0].numpy().astype(np.int64)
    assert resized.shape == (10, 10)
    exact = np.array(Image.fromarray(smooth.astype(np.float32)).resize((10, 20), Image.Resampling.BILINEAR))[5:15]
    assert np.abs(resized - exact).max() < 0.51  # they are rounded


COLOR_16 = RNG.integers(0, 65_536, (8, 6, 4), np.uint16)


@pytest.mark.parametrize(
    ("write", "suffix", "conversion"),
    [
        (partial(write_png, pixels=COLOR_16[..., :3], color=2), "png", "16-bit color"),
        (partial(write_png, pixels=COLOR_16, color=6), "png", "16-bit color with transparency"),
        (partial(write_png, pixels=COLOR_16[..., :2], color=4), "png", "16-bit grayscale with transparency"),
        (partial(write_tiff, pixels=COLOR_16[..., :3], photometric=2), "tif", "16-bit color"),
        (partial(write_tiff, pixels=COLOR_16[..., :3].astype(">u2"), photometric=2), "tif", "16-bit color"),
        (partial(write_tiff, pixels=COLOR_16, photometric=5), "tif", "16-bit CMYK"),
        (partial(write_pgm, pixels=COLOR_16[..., :3]), "ppm", "16-bit color"),
    ],
)
def test_16_bit_color_is_a_conversion_to_8_bits(caplog, write, suffix, conversion):
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        data = set_up(copies(write, suffix))
    assert (data.levels, data.image_shape) == (256, (3, 8, 6))
    assert f"Images are converted to 8 bits: 8 {conversion}; " in caplog.text
    if conversion == "16-bit color":
        expected = COLOR_16[..., :3].transpose(2, 0, 1) / 257.0
        assert np.abs(pixels(data).numpy() - expected).max() < 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (partial(write_tiff, pixels=LEVELS.view(np.int16), signed=True), "has mode I I;16S: images must have 8 bits"),
        (partial(write_tiff, pixels=LEVELS.astype("<u4"), bits=32), "has mode I I;32N: images must have 8 bits"),
        (partial(write_tiff, pixels=LEVELS, bits=12), "has mode I;16 I;12: images must have 8 bits"),
        (partial(write_tiff, pixels=LEVELS, photometric=0), "has 16 bits with white as 0: convert or remove it"),
    ],
)
def test_other_kinds_of_many_bits_are_refused(write, message):
    with pytest.raises(ValueError, match=rf"^0.tif {message}"):
        set_up(copies(write, "tif"))


def test_channels_follow_from_the_bits():
    copies(GRAYSCALE["png"], "png")
    assert set_up(image_folder(".", channels=1)).image_shape == (1, 8, 6)
    with pytest.raises(ValueError, match=r"channels = 3 of ImageFolderDataModule must be 1: the images are 16-bit"):
        set_up(image_folder(".", channels=3))
    Image.new("L", (6, 8)).save("9.png")
    with pytest.raises(ValueError, match=r"^0.png is 16-bit grayscale and 9.png is not: convert one of them"):
        set_up(image_folder("."))


def test_levels_are_in_the_fingerprint():
    copies(GRAYSCALE["png"], "png")
    images = image_folder(".", in_memory=False).splits()["train"]
    of_8_bits = replace(images, decoding=replace(images.decoding, levels=256))
    assert images.fingerprint() != of_8_bits.fingerprint()
