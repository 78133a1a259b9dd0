"""The cost of a fit: parameters, floating-point operations, and when it will end."""

import math
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from lit_ddpm.diffusion.denoiser import evaluating

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

TIMED_STEPS = 100
"""The optimizer steps from which the end of a fit is estimated."""

PASSES = 3
"""The cost of a training step in forward passes: a backward pass costs about two."""


def forward_flops(module: "DDPM") -> int | None:
    """Returns the floating-point operations of a network call for one image, by `torch.utils.flop_counter`.

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
        with evaluating(network), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network.forward(x, t, **cond)
    except (TypeError, ValueError, RuntimeError):
        return None
    return int(counter.get_total_flops())


class CostReport(Callback):
    """Logs the cost of a fit at its start, and after the first hundred steps when it will end."""

    _start: float | None = None  # the time at the first step, until the end is estimated

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flops = forward_flops(cast("DDPM", pl_module))  # before the training loop, which other callbacks time

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, flops = cast("DDPM", pl_module), self._flops
        self._first_step, self._start = trainer.global_step, time.monotonic()
        parameters = sum(weight.numel() for weight in module.denoiser.network.parameters())
        parts = [f"{quantity(parameters).rstrip()} parameters"]
        if flops is not None:
            parts.append(f"{quantity(flops)}FLOPs for an image in a network call")
        loader: Any = trainer.train_dataloader
        steps, batch_size = (
            trainer.estimated_stepping_batches - trainer.global_step,
            getattr(loader, "batch_size", None),
        )
        if math.isfinite(steps):
            parts.append(f"{steps:,} steps")
            if batch_size is not None:
                images = int(steps) * batch_size * trainer.accumulate_grad_batches * trainer.world_size
                total = "" if flops is None else f" and {quantity(PASSES * flops * images)}FLOPs in total"
                parts.append(f"{images:,} images{total}")
        rank_zero_info(f"The fit has {', '.join(parts)}.")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._start is None or trainer.global_step - self._first_step < TIMED_STEPS:
            return
        remaining = trainer.estimated_stepping_batches - trainer.global_step
        per_step, self._start = (time.monotonic() - self._start) / TIMED_STEPS, None
        if remaining <= 0 or not math.isfinite(remaining):
            return
        seconds = timedelta(seconds=round(per_step * remaining))
        end = (datetime.now() + seconds).strftime("%Y-%m-%d %H:%M")
        rank_zero_info(f"{remaining:,} more steps take about {seconds} and end at {end}, validations not counted.")


def quantity(value: float) -> str:
    """Formats a number with the prefix of its unit, ``"1.02 M"``; a space without one, ``"31 "``."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z")
    power = min(int(math.log10(value) // 3), len(prefixes) - 1) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {prefixes[power]}"
