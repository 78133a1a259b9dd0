"""What would make a training faster on the machine that it runs on."""

import torch
from lightning import Trainer

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
