"""Images of any mode of Pillow as grayscale or color of 8 bits, or as grayscale of 16 bits."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lit_ddpm._internal.checks import InputError
from lit_ddpm.data.pixels import level_dtype

CONVERTED = {
    "1": "one bit",
    "P": "palette",
    "PA": "palette",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "LAB",
    "HSV": "HSV",
    "LA": "grayscale with transparency",
    "La": "grayscale with transparency",
    "RGBA": "color with transparency",
    "RGBa": "color with transparency",
    "RGBX": "RGBX",
}
"""The modes that are converted, next to L and RGB, by the name in messages."""

GRAYSCALE_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
"""The modes of 16-bit grayscale in memory, and in files that Pillow opens with mode I."""

ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values for images that are turned by 90 degrees
WIDTH, HEIGHT, PHOTOMETRIC = 256, 257, 262  # TIFF tags


class UnusableImageError(InputError):
    """An image of a kind that is not used, although it is intact; the message follows the name of the image."""


class DamagedImageError(InputError):
    """A damaged image; the message names it."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Adds the name of an image to errors.

    Raises:
        DamagedImageError: If Pillow cannot read the image.
        ValueError: If it is of a kind that is not used.
    """
    try:
        yield
    except UnusableImageError as error:
        raise InputError(f"{name} {error}: convert or remove it.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedImageError(f"{name} is damaged ({error}): remove it.") from None


class Header(NamedTuple):
    """What the header of an image file contains."""

    name: str  # of the image, in messages
    size: tuple[int, int]  # height and width of the upright image
    levels: int  # 256, or 65,536 for 16-bit grayscale
    conversion: str | None  # the name of its conversion


@dataclass
class Headers:
    """The sizes, levels and conversions of many images."""

    sizes: dict[tuple[int, int], str] = field(default_factory=dict)  # the first two, with the name of an image
    levels: dict[int, str] = field(default_factory=dict)
    conversions: Counter[str] = field(default_factory=Counter)

    def add(self, header: Header) -> None:
        """Adds the header of an image."""
        if len(self.sizes) < 2:
            self.sizes.setdefault(header.size, header.name)
        self.levels.setdefault(header.levels, header.name)
        if header.conversion is not None:
            self.conversions[header.conversion] += 1

    def common_levels(self) -> int:
        """Returns the levels of all images; raises a ValueError if they differ."""
        if len(self.levels) > 1:
            raise InputError(
                f"{self.levels[65_536]} is 16-bit grayscale and {self.levels[256]} is not: convert one of them."
            )
        return next(iter(self.levels))

    def common_size(self, image_size: int | None) -> tuple[int, int]:
        """Returns the height and width of all images once decoded; raises a ValueError if they differ."""
        if image_size is not None:
            return image_size, image_size
        if len(self.sizes) > 1:
            ((height, width), first), ((other_height, other_width), second) = self.sizes.items()
            raise InputError(
                f"image_size = None needs images of one size, but {first} has {width}x{height} pixels and {second} "
                f"has {other_width}x{other_height}: set image_size."
            )
        return next(iter(self.sizes))

    def describe_conversions(self) -> str:
        """Returns the number of each conversion; "" without any."""
        return ", ".join(f"{count:,} {conversion}" for conversion, count in self.conversions.most_common())


@dataclass(frozen=True)
class Decoding:
    """How images are decoded."""

    image_size: int | None  # shorter sides are resized to it and the center is cropped; None keeps the size
    channels: int  # 1 or 3; grayscale and color images are converted to either
    background: str  # the color behind transparent pixels
    levels: int  # 256, or 65,536 for 16-bit grayscale

    def decode(self, image: Image.Image) -> Tensor:
        """Returns the pixel levels of an image: uint8 ``[C, H, W]``, or uint16 ``[1, H, W]`` for 65,536 levels."""
        if self.levels > 256:
            pixels: Tensor = self._fit(grayscale_16_bit(image, self.background))
            return pixels.round().to(level_dtype(self.levels))
        fitted = self._fit(convert_image(image, "L" if self.channels == 1 else "RGB", self.background))
        pixels = torch.from_numpy(np.array(fitted))
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1).contiguous()

    def _fit(self, image: Any) -> Any:
        if self.image_size is None:
            return image
        return F.center_crop(F.resize(image, [self.image_size]), [self.image_size])


def check_background(owner: object, background: str) -> None:
    """Raises a ValueError if a background is not a color of Pillow."""
    try:
        ImageColor.getrgb(background)
    except ValueError:
        raise InputError(
            f"background = {background!r} of {type(owner).__name__} must be a color, such as white or '#808080'."
        ) from None


def read_header(image: Image.Image, name: str) -> Header:
    """Returns the size, levels and conversion of an image, without decoding its pixels.

    Raises:
        UnusableImageError: If it has several frames, or more bits than are used.
    """
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise UnusableImageError(f"has {frames} frames: animated and multi-page files are not used")
    width, height = image.size
    if isinstance(image, TiffImageFile):  # whose `size` is that of the upright image in some releases of Pillow
        width, height = image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
    # For a PNG, getexif would decode the pixels to reach the end of the file.
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
    size = (width, height) if exif.get(ORIENTATION) in SIDEWAYS else (height, width)
    return Header(name, size, *_levels_and_conversion(image))


def _levels_and_conversion(image: Image.Image) -> tuple[int, str | None]:
    in_file = _mode_in_file(image)
    if (image.mode in GRAYSCALE_16_BIT and in_file != "I;12") or (image.mode == "I" and in_file in GRAYSCALE_16_BIT):
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == 0:
            raise UnusableImageError("has 16 bits with white as 0")  # Pillow inverts it with 8 bits only
        return 65_536, "transparency" if "transparency" in image.info else None
    if image.mode not in ("L", "RGB", *CONVERTED):
        mode = " ".join(dict.fromkeys((image.mode, in_file)))
        raise UnusableImageError(
            f"has mode {mode}: images must have 8 bits, or 16 in grayscale (ArrayDataModule takes real values)"
        )
    if ";16" in in_file:  # Pillow keeps 8 of them
        return 256, f"16-bit {CONVERTED.get(in_file.partition(';')[0], 'color')}"
    conversion = CONVERTED.get(image.mode)
    if conversion in (None, "palette") and _is_transparent(image):
        conversion = f"{conversion or 'one color'} with transparency"
    return 256, conversion


def _mode_in_file(image: Image.Image) -> str:
    """Returns the mode of the pixels in the file of an image, such as ``RGB;16B``; its mode in memory if unknown."""
    if not (tiles := getattr(image, "tile", [])):
        return image.mode
    codec, _, _, args = tiles[0]
    first, *others = args if isinstance(args, tuple) and args else [args]
    if codec.startswith("ppm"):  # with the largest level, which Pillow scales to 255 or 65,535
        return f"{image.mode};16" if others[0] > 255 else image.mode
    return str(first)


def convert_image(image: Image.Image, mode: str, background: str) -> Image.Image:
    """Returns an upright image of mode L or RGB; transparent pixels show the background."""
    image = _upright(image)
    if _is_transparent(image):
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(behind, image)
    if image.mode in ("LAB", "HSV"):  # Pillow converts them by way of color
        image = image.convert("RGB")
    return image.convert(mode)


def grayscale_16_bit(image: Image.Image, background: str) -> Tensor:
    """Returns the levels of an upright image of 16-bit grayscale, float32 ``[1, H, W]``, likewise."""
    image = _upright(image)
    pixels = np.array(image).astype(np.float32)  # the bytes of mode I;16B are swapped, unlike torch's
    if (transparent := image.info.get("transparency")) is not None:
        behind = np.array(Image.new("L", (1, 1), background), np.float32)
        pixels = np.where(pixels == transparent, 257 * behind, pixels)
    return torch.from_numpy(pixels)[None]


def _upright(image: Image.Image) -> Image.Image:
    if isinstance(image, TiffImageFile):
        image.filename = ""  # else Pillow 13 maps the file into memory, with swapped sides if it lies on one
    return ImageOps.exif_transpose(image)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
