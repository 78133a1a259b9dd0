"""Training speed and memory."""

import sys
import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lit_ddpm.callbacks.callback import DDPMCallback


class Performance(DDPMCallback):
    """Logs speed and memory every ``log_every_n_steps`` steps.

    - ``perf/images_per_s``: images of all ranks per second since the last value, without validation.
    - ``perf/outside_network``: the fraction of the last step that is neither forward nor backward pass: data, noise,
      loss, logging, optimizer. On a GPU this step is synchronized at each boundary, so overlapping work counts fully.
    - ``perf/peak_memory_gib``: the peak memory of the GPU, or of the process without a GPU.

    Lightning's ``ThroughputMonitor`` (2.6) needs a function for the batch size, which no checkpoint can contain,
    synchronizes a GPU at every step, and writes past the metrics of the Trainer. It does not measure the other two.
    """

    _hooks: tuple[RemovableHandle, ...] = ()
    _marks: list[float]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = self.ddpm(pl_module).denoiser.network
        self._every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]  # Lightning sets it from another class
        self._device, self._timed, self._batch_size = pl_module.device, False, 0
        self._hooks = (
            network.register_forward_pre_hook(lambda _, args: self._enter(len(args[0]))),
            network.register_forward_hook(lambda *_: self._mark()),
        )
        self._restart()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._restart()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._timed = (trainer.global_step + 1) % self._every == 0

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._mark()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += self._batch_size
        if self._timed and trainer.global_step % self._every == 0:
            now, (begin, *passes) = self._now(), self._marks
            inside = sum(passes[1::2]) - sum(passes[::2])
            values = {
                "perf/images_per_s": self._images * trainer.world_size / (now - self._since),
                "perf/outside_network": 1 - inside / (now - begin),
            }
            if (peak := _peak_memory(self._device)) is not None:
                values["perf/peak_memory_gib"] = peak / 2**30
            pl_module.log_dict(values)
            self._restart()
        elif (trainer.global_step + 1) % self._every == 0:
            self._marks = [self._now()]

    def _restart(self) -> None:
        self._images, self._since = 0, self._now()
        self._marks = [self._since]  # the start of the batch, then the start and end of each pass

    def _enter(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._mark()

    def _mark(self) -> None:
        if self._timed:
            self._marks.append(self._now())

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _peak_memory(device: torch.device) -> int | None:
    """Returns the peak memory in bytes, or None on a platform that does not measure it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
