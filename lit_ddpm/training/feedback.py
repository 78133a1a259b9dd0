"""Feedback of the training losses to the timestep sampler."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_ddpm.data.loader import Progress
from lit_ddpm.diffusion.timesteps import TimestepSampler


class ImportanceFeedback(Callback):
    """Passes the losses of each completed batch, gathered from all ranks, to a timestep sampler.

    A batch that is interrupted is repeated after resuming, so its losses are recorded when it completes.
    """

    def __init__(self, timesteps: TimestepSampler) -> None:
        self.timesteps = timesteps
        self._pending: tuple[int, Tensor, Tensor] | None = None  # batch index, timesteps and losses

    def observe(self, module: LightningModule, batch_idx: int, t: Tensor, losses: Tensor) -> None:
        """Gathers the timesteps and losses of the current batch, both ``[B]``, if the sampler uses them."""
        if self.timesteps.uses_losses:
            gathered = module.all_gather(torch.stack([t.to(losses), losses.detach()], dim=1))
            assert isinstance(gathered, Tensor)
            all_t, all_losses = gathered.reshape(-1, 2).T.cpu()
            self._pending = (batch_idx, all_t if t.is_floating_point() else all_t.round().long(), all_losses)

    def _record(self) -> None:
        if self._pending is not None:
            self.timesteps.update(*self._pending[1:])
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
