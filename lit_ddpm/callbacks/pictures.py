"""Pictures of samples of any shape: images, curves of sequences, and middle slices of volumes."""

from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from lit_ddpm.callbacks.plots import PALETTE, render
from lit_ddpm.data.pixels import Standardization, to_uint8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_PIXELS = 32  # smaller images are enlarged to at least this height
STDS = 3  # standard deviations of real values from the mean to white
DRAWN_DIMS = (1, 2, 3)  # next to the channels
PANEL = (1.5, 1.1)  # inches of a curve


def draw_samples(
    samples: Tensor,
    columns: int,
    levels: int = 256,
    standardization: Standardization | None = None,
    cond: Tensor | None = None,
    truth: Tensor | None = None,
    cond_in_units: bool = True,
) -> tuple[Image.Image, str]:
    """Draws sequences, images or volumes ``[N, C, ...]`` in rows of `columns`.

    With `cond` and `truth`, each sample is next to its condition and the image that the condition belongs to. All
    values are those of the network: pixel levels in [-1, 1], and standardized real values; conditions may have others
    (``cond_in_units=False``).

    Returns:
        The picture, and a description for a caption of what it shows, such as ``"middle slices"``; it may be empty.
    """
    channels, dims, notes = samples.shape[1], samples.ndim - 2, []
    kinds = [_displayed(samples, standardization)]
    if cond is not None and truth is not None:
        notes.append("condition, sample and truth side by side")
        resized = F.interpolate(cond, list(samples.shape[2:]), mode="nearest")
        shown_cond = _displayed(resized, standardization) if cond_in_units else _normalized(resized)
        kinds = [shown_cond, kinds[0], _displayed(truth, standardization)]
        columns = 3 * max(1, columns // 3)
    shown = 1 if channels == 2 and dims > 1 else min(channels, 3)  # a picture has one channel or three colors
    if shown < channels:
        notes.append(f"channel{f's 1 to {shown}' if shown > 1 else ' 1'} of {channels}")
    cells = torch.stack([_first_channels(kind, shown) for kind in kinds], 1)
    if dims == 1:
        return _curves(cells, columns), ", ".join(notes)
    if dims == 3:
        notes.append("middle slices")
        cells = cells[:, :, :, cells.shape[3] // 2]
    if standardization is not None:
        notes.append(f"black to white from -{STDS} to {STDS} standard deviations")
    return to_pil_image(image_grid(to_uint8(cells.flatten(0, 1), levels), columns)), ", ".join(notes)


def _displayed(values: Tensor, standardization: Standardization | None) -> Tensor:
    """Returns the values of curves in the units of the data, and those of images in [-1, 1]."""
    values = values.float().cpu()
    if standardization is None:
        return values
    return standardization.undo(values) if values.ndim == 3 else values / STDS


def _normalized(values: Tensor) -> Tensor:
    """Returns the values of curves as they are, and those of images divided by the largest if it exceeds 1."""
    values = values.float().cpu()
    return values if values.ndim == 3 else values / max(1.0, float(values.abs().max()))


def _first_channels(values: Tensor, count: int) -> Tensor:
    """Returns the first channels; of a condition with fewer the first one, repeated."""
    return values[:, :count] if values.shape[1] >= count else values[:, [0] * count]


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Arranges uint8 images ``[N, C, H, W]`` in rows of `columns`: uint8 ``[3, H', W']``."""
    zoom = max(1, -(-MIN_PIXELS // images.shape[-2]))
    images = F.interpolate(images.cpu().float(), scale_factor=zoom, mode="nearest").byte()
    grid: Tensor = make_grid(images, nrow=columns, padding=2, pad_value=128)
    return grid


def _limits(values: Tensor) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _curves(cells: Tensor, columns: int) -> Image.Image:
    """Draws sequences ``[N, K, C, L]`` of K kinds side by side; only conditions have a scale of their own."""
    num_kinds = cells.shape[1]
    panels = cells.flatten(0, 1)
    rows = -(-len(panels) // columns)

    limits = [_limits(cells[:, :1] if num_kinds > 1 and kind == 0 else cells[:, -2:]) for kind in range(num_kinds)]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for index, axis in enumerate(axes.flat):
            axis.tick_params(labelsize=7, labelleft=index % columns == 0 or num_kinds > 1)
            if index >= len(panels):
                axis.axis("off")
                continue
            axis.set_ylim(limits[index % num_kinds])
            for channel, color in zip(panels[index], PALETTE, strict=False):
                axis.plot(channel.numpy(), color=color, linewidth=1.2)

    return render(draw, (columns * PANEL[0], rows * PANEL[1]))
