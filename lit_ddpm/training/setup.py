"""Whether model and data fit together, found out before training."""

from typing import Any

import torch
from lightning import Trainer

from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser


def check_data(data: Any, denoiser: Denoiser, decoder: Decoder) -> None:
    """Compares a model with what a data module states of ``levels``, ``image_shape`` and ``num_classes``.

    Raises:
        ValueError: If they do not fit together.
    """
    network, kind = denoiser.network, type(data).__name__
    levels: int | None = getattr(data, "levels", None)
    shape: Any = getattr(data, "image_shape", None)
    if levels and decoder.levels not in (None, levels):
        raise ValueError(
            f"the decoder has levels = {decoder.levels} but the images of {kind} have levels = {levels}; set the "
            f"decoder's levels to {levels}."
        )
    times = 2 if denoiser.variance == "learned" else 1
    for name, channels in {"in_channels": shape[0], "out_channels": times * shape[0]}.items() if shape else ():
        if getattr(network, name, channels) != channels:
            raise ValueError(
                f"{name} = {getattr(network, name)} of {type(network).__name__} does not fit images of image_shape = "
                f"{list(shape)} from {kind}: {type(denoiser.parametrization).__name__} with "
                f"variance={denoiser.variance!r} needs {channels}."
            )
    num_classes = getattr(network, "num_classes", None)
    of_data = getattr(data, "num_classes", num_classes)
    if num_classes is not None and data is not None and (of_data is None or of_data > num_classes):
        raise ValueError(
            f"num_classes = {num_classes} of {type(network).__name__} does not fit {kind}, which has {of_data or 'no'} "
            "classes."
        )


SMALL = 28 * 28
"""Pixels below which a CPU gains nothing: on 8x8 digits converting costs what it saves."""


def faster_with(trainer: Trainer, num_pixels: int, compiled: bool, channels_last: bool) -> list[str]:
    """The names of the files in ``configs/trainer`` that would speed a training up, as far as measured or known.

    On a CPU bfloat16 pays where there are instructions for it, and the order of the channels in float32 alone. A GPU
    likes all three together.
    """
    device = trainer.strategy.root_device.type
    full = str(trainer.precision) == "32-true"
    if device == "cpu":
        if num_pixels < SMALL:
            return []
        can = torch.cpu.get_capabilities()
        if full and (can.get("avx512_bf16") or can.get("amx_bf16")):
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
