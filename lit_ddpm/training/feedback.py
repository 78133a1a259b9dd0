"""Feedback of the training losses to the timestep sampler."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_ddpm.data.loader import Progress
from lit_ddpm.diffusion.schedule import expand_like
from lit_ddpm.diffusion.timesteps import TimestepSampler


class ImportanceFeedback(Callback):
    """Passes the losses of each completed batch, gathered from all ranks, to a timestep sampler.

    A batch that is interrupted is repeated after resuming, so its losses are recorded when it completes.
    """

    def __init__(self, timesteps: TimestepSampler) -> None:
        self.timesteps = timesteps
        self._pending: tuple[int, bool, _CPUCopy] | None = None  # batch index, whether t is real, timesteps and losses

    def observe(self, module: LightningModule, batch_idx: int, t: Tensor, losses: Tensor) -> None:
        """Gathers the timesteps and losses of the current batch, both ``[B]``, if the sampler uses them."""
        if self.timesteps.uses_losses:
            gathered = module.all_gather(torch.stack([expand_like(t, losses), losses.detach()], dim=1))
            assert isinstance(gathered, Tensor)
            self._pending = batch_idx, t.is_floating_point(), _CPUCopy(gathered.reshape(-1, 2).T)

    def _record(self) -> None:
        if self._pending is not None:
            _, real, copy = self._pending
            t, losses = copy.wait()
            self.timesteps.update(t if real else t.round().long(), losses)
            self._pending = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pending = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._record()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._pending is not None and self._pending[0] < Progress(trainer).batches:
            self._record()  # the batch is complete, but an error occurred before its last hook


class _CPUCopy:
    """A copy of a tensor on the CPU, which a GPU makes while it works."""

    def __init__(self, values: Tensor) -> None:
        self._copy = values.to("cpu", non_blocking=values.is_cuda)
        self._made = torch.Event(values.device) if values.is_cuda else None
        if self._made is not None:
            self._made.record()

    def wait(self) -> Tensor:
        """Returns the copy once it is made."""
        if self._made is not None:
            self._made.synchronize()
        return self._copy
