"""Images of any mode of Pillow as 8-bit grayscale or color."""

from PIL import Image, ImageColor, ImageOps

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

ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values for images that are turned by 90 degrees


class UnusableImageError(ValueError):
    """An image of a kind that is not used, although it is intact; the message follows the name of the image."""


def check_background(owner: object, background: str) -> None:
    """Raises a ValueError if a background is not a color of Pillow."""
    try:
        ImageColor.getrgb(background)
    except ValueError:
        raise ValueError(
            f"background = {background!r} of {type(owner).__name__} must be a color, such as white or '#808080'."
        ) from None


def check_image(image: Image.Image) -> tuple[tuple[int, int], str | None]:
    """Returns the width and height of an upright image, and the name of its conversion or None, from its header.

    Raises:
        UnusableImageError: If it has several frames, or more than 8 bits.
    """
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise UnusableImageError(f"has {frames} frames: animated and multi-page files are not used")
    if image.mode not in ("L", "RGB", *CONVERTED):
        raise UnusableImageError(f"has mode {image.mode}: images must have 8 bits for each channel")
    width, height = image.size
    # For a PNG, getexif would decode the pixels to reach the end of the file.
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
    sideways = exif.get(ORIENTATION) in SIDEWAYS
    conversion = CONVERTED.get(image.mode)
    if conversion in (None, "palette") and _is_transparent(image):
        conversion = f"{conversion or 'one color'} with transparency"
    return (height, width) if sideways else (width, height), conversion


def convert_image(image: Image.Image, mode: str, background: str) -> Image.Image:
    """Returns an upright image of mode L or RGB; transparent pixels show the background."""
    image = ImageOps.exif_transpose(image)
    if _is_transparent(image):
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(behind, image)
    if image.mode in ("LAB", "HSV"):  # Pillow converts them by way of color
        image = image.convert("RGB")
    return image.convert(mode)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
