"""The cost of a fit: floating-point operations, when it will end, and which settings would be faster."""

import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import measure_flops
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from lit_ddpm.diffusion.denoiser import evaluating

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

TIMED_STEPS = 100
"""The optimizer steps from which the end of a fit is estimated."""

PASSES = 3
"""The cost of a training step in forward passes: a backward pass costs about two."""

MIN_PIXELS = 28 * 28
"""Images with fewer pixels gain nothing on a CPU: on the 8x8 digits the conversion costs what it saves."""


class CostReport(Callback):
    """Logs FLOPs and faster overlays at the start of a fit, and when it will end after the first hundred steps.

    Lightning's summary of a model has its parameters. It counts FLOPs only for a module with a ``forward`` and an
    example input, and on a CPU without attention.
    """

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast("DDPM", pl_module)
        self._flops = forward_flops(module)  # before the training loop, which other callbacks time
        if names := faster_overlays(trainer, module):
            overlays = " ".join(f"--config {name}" for name in names)
            rank_zero_info(f"Training would be faster on this machine with {overlays}")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step, self._start = trainer.global_step, cast("float | None", time.monotonic())
        steps, flops = trainer.estimated_stepping_batches - trainer.global_step, self._flops
        batch_size: int | None = getattr(trainer.train_dataloader, "batch_size", None)
        parts = [] if flops is None else [f"{flops:.3g} FLOPs for an image in a network call"]
        if math.isfinite(steps):
            parts.append(f"{steps:,} steps")
            if batch_size is not None:
                images = int(steps) * batch_size * trainer.accumulate_grad_batches * trainer.world_size
                parts.append(f"{images:,} images")
                parts += [] if flops is None else [f"{PASSES * flops * images:.3g} FLOPs in total"]
        if parts:
            rank_zero_info(f"The fit has {', '.join(parts)}.")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._first_step + TIMED_STEPS or self._start is None:
            return
        elapsed, self._start = time.monotonic() - self._start, None  # with accumulation a step has several batches
        remaining = trainer.estimated_stepping_batches - trainer.global_step
        if 0 < remaining < math.inf:
            duration = timedelta(seconds=round(elapsed / TIMED_STEPS * remaining))
            end = (datetime.now() + duration).strftime("%Y-%m-%d %H:%M")
            rank_zero_info(f"{remaining:,} more steps take about {duration} and end at {end}, validations not counted.")


def forward_flops(module: "DDPM") -> int | None:
    """Returns the floating-point operations of a network call for one image.

    None if the image shape is unknown, the weights are sharded, or the network needs more than images, timesteps,
    labels and conditions.
    """
    network, shape = module.denoiser.network, module.data.image_shape
    if shape is None or module.device_mesh is not None:
        return None
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)
    t = torch.ones(1, dtype=torch.int64, device=weight.device)
    cond = {} if module.denoiser.network_spec.num_classes is None else {"label": torch.zeros_like(t)}
    if module.condition is not None:
        cond["cond"] = module.condition(x)
    elif (channels := module.denoiser.network_spec.cond_channels) is not None:
        cond["cond"] = x.new_zeros(1, *(module.data.cond_shape or (channels, *shape[1:])))
    try:
        # Fused attention is not counted on a CPU. `forward`, so that nothing is compiled for one image.
        with evaluating(network), sdpa_kernel(SDPBackend.MATH):
            return int(measure_flops(network, lambda: network.forward(x, t, **cond)))
    except (TypeError, ValueError, RuntimeError):
        return None


def faster_overlays(trainer: Trainer, module: "DDPM") -> list[str]:
    """Returns the overlays of settings with which a fit would be faster on its machine.

    A CPU gains from bfloat16 if it has instructions for it, and from channels-last memory in float32. A GPU gains from
    bfloat16, and from ``torch.compile`` together with channels-last memory, which alone gains nothing.
    """
    device, network, shape = trainer.strategy.root_device.type, module.denoiser.network, module.data.image_shape
    full_precision = str(trainer.precision) == "32-true"
    channels_first = all(weight.is_contiguous() for weight in network.parameters())
    if device == "cuda":
        missing = {
            "bf16": full_precision and torch.cuda.is_bf16_supported(including_emulation=False),
            "channels_last": channels_first,
            "compile": not is_compiled(network),
        }
        return [name for name, faster in missing.items() if faster]
    if device != "cpu" or not full_precision or shape is None or math.prod(shape[1:]) < MIN_PIXELS:
        return []
    read: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # absent from torch 2.9
    capabilities = read()
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        return ["bf16"]
    return ["channels_last"] if channels_first else []


def is_compiled(network: nn.Module) -> bool:
    """Returns whether a network is compiled, in place or by `torch.compile`, which wraps it."""
    return network._compiled_call_impl is not None or hasattr(network, "_orig_mod")  # torch 2.14 has no public name
