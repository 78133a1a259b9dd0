"""Checks before training: whether model and data fit, and which settings would be faster on this machine."""

import math
from typing import TYPE_CHECKING, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_ddpm.data.protocols import DataInfo
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser, ImageNetwork

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

MIN_PIXELS = 28 * 28
"""Images with fewer pixels gain nothing on a CPU: on the 8x8 digits the conversion costs what it saves."""


def check_data(data: DataInfo, denoiser: Denoiser, decoder: Decoder) -> None:
    """Compares a model with the statements of a data module.

    Raises:
        ValueError: If they contradict each other.
    """
    network, network_name = denoiser.network, type(denoiser.network).__name__
    if data.levels and decoder.levels not in (None, data.levels):
        raise ValueError(
            f"the decoder has levels = {decoder.levels} but the images of {data.name} have levels = {data.levels}; set "
            f"the decoder's levels to {data.levels}."
        )
    if data.image_shape is not None and isinstance(network, ImageNetwork):
        channels = data.image_shape[0]
        out_channels = 2 * channels if denoiser.variance == "learned" else channels
        for name, actual, needed in (
            ("in_channels", network.in_channels, channels),
            ("out_channels", network.out_channels, out_channels),
        ):
            if actual != needed:
                raise ValueError(
                    f"{name} = {actual} of {network_name} does not fit images of image_shape = "
                    f"{list(data.image_shape)} from {data.name}: {type(denoiser.parametrization).__name__} with "
                    f"variance={denoiser.variance!r} needs {needed}."
                )
    num_classes = denoiser.num_classes
    if num_classes is not None and data.states_classes and not 0 < (data.num_classes or 0) <= num_classes:
        raise ValueError(
            f"num_classes = {num_classes} of {network_name} does not fit {data.name}, which has "
            f"{data.num_classes or 'no'} classes."
        )


def faster_settings(trainer: Trainer, num_pixels: int, compiled: bool, channels_last: bool) -> list[str]:
    """Returns the names of the files in ``configs/trainer`` that would make training faster on this machine.

    A CPU gains from bfloat16 if it has instructions for it, and from channels-last memory in float32. A GPU gains from
    both and from ``torch.compile``.
    """
    device = trainer.strategy.root_device.type
    full = str(trainer.precision) == "32-true"
    if device == "cpu":
        if num_pixels < MIN_PIXELS:
            return []
        capabilities = torch.cpu.get_capabilities()
        if full and (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
            return ["bf16"]
        return ["channels_last"] if full and not channels_last else []
    if device != "cuda":
        return []
    missing = {
        "bf16": full and torch.cuda.is_bf16_supported(including_emulation=False),
        "channels_last": not channels_last,
        "compile": not compiled,
    }
    return [name for name, faster in missing.items() if faster]


class SpeedHint(Callback):
    """Reports at the start of a fit which settings would be faster; it changes none.

    Args:
        compiled: Whether the network is compiled.
        channels_last: Whether the network is in channels-last memory format.
    """

    def __init__(self, compiled: bool, channels_last: bool) -> None:
        self.compiled = compiled
        self.channels_last = channels_last

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shape = cast("DDPM", pl_module).image_shape
        num_pixels = math.prod(shape[1:]) if shape is not None else 0
        names = faster_settings(trainer, num_pixels, self.compiled, self.channels_last)
        if names:
            overlays = " ".join(f"--config configs/trainer/{name}.yaml" for name in names)
            rank_zero_info(f"Training would be faster on this machine with {overlays}")
