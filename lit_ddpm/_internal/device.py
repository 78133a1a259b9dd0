"""Copies from the CPU that a GPU makes while the CPU works."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Returns values of the CPU on a device, without waiting for a GPU; MPS would read memory that is freed by then."""
    return values.to(device, non_blocking=device.type == "cuda")


def page_locked(values: Tensor, device: torch.device) -> Tensor:
    """Returns values of the CPU in page-locked memory for a GPU, which waits to copy many values from other memory."""
    return values.pin_memory() if device.type == "cuda" else values
