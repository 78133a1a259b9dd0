"""Feedback of the training losses to the timestep sampler."""

from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_ddpm.data.loader import Progress
from lit_ddpm.diffusion.schedule import expand_like

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM


class ImportanceFeedback(Callback):
    """Passes the losses of each completed batch, gathered from all ranks, to the timestep sampler of a `DDPM`.

    A batch that is interrupted is repeated after resuming, so its losses are recorded when it completes.
    """

    def __init__(self) -> None:
        self._batch_idx = 0  # of the current batch
        self._pending: tuple[int, bool, _CPUCopy] | None = None  # batch index, whether t is real, timesteps and losses

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pending = None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_idx = batch_idx

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        module = cast("DDPM", pl_module)
        if module.timesteps.uses_losses:
            t, losses = module.last_losses
            gathered = module.all_gather(torch.stack([expand_like(t, losses), losses], dim=1))
            assert isinstance(gathered, Tensor)
            self._pending = self._batch_idx, t.is_floating_point(), _CPUCopy(gathered.reshape(-1, 2).T)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._record(cast("DDPM", pl_module))

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._pending is not None and self._pending[0] < Progress(trainer).batches:
            self._record(cast("DDPM", pl_module))  # the batch is complete, but an error occurred before its last hook

    def _record(self, module: "DDPM") -> None:
        if self._pending is not None:
            _, real, copy = self._pending
            t, losses = copy.wait()
            module.timesteps.update(t if real else t.round().long(), losses)
            self._pending = None


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
