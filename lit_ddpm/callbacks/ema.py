"""The exponential moving average of the weights."""

import warnings
from copy import copy
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm.training.distributed import SHARDED
from lit_ddpm.training.evaluation import Evaluation
from lit_ddpm.training.module import DDPM


class EMA(WeightAveraging):
    """Averages the weights over optimizer steps; everything except the training steps uses the average.

    The module holds the average during validation and from the end of training on. A checkpoint's ``state_dict`` is the
    average, so every loader gets it; training resumes from ``current_model_state``. Without ``ckpt_path`` a fit starts
    from the weights that the module holds, which are the average after an earlier fit.

    After ``n`` steps the decay is ``min(decay, (1 + n) / (10 + n))``, a warm-up that gives the initial weights little
    weight in a short run.

    Args:
        decay: The largest decay, in [0, 1).
        raw_bound: Log the bound of the raw weights too, as ``val/bpd_raw``; a validation takes twice as long.

    Raises:
        ValueError: In `setup`, if the strategy shards the weights, which Lightning's averaging does not support.
    """

    def __init__(self, decay: float = 0.9999, raw_bound: bool = False) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"decay = {decay} of EMA must be in [0, 1).")
        super().__init__(use_buffers=False, multi_avg_fn=self._average)
        self.decay = decay
        self.raw_bound = raw_bound
        self.swapped = False  # whether the module holds the average, and the average model the raw weights
        self._tensors: list[list[Any]] = []  # averaged and raw parameters, then buffers; from the first update on
        self._raw: Evaluation | None = None

    def decay_at(self, num_steps: int) -> float:
        """Returns the decay of the update after `num_steps` optimizer steps."""
        return min(self.decay, (1 + num_steps) / (10 + num_steps))

    def _average(self, average: list[Tensor], current: list[Tensor], num_averaged: Any) -> None:
        # num_averaged is a tensor on the device: reading it would synchronize at every step.
        torch._foreach_lerp_(average, current, 1 - self.decay_at(self._latest_update_step))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, SHARDED):
            raise InputError(
                f"EMA does not work with {type(trainer.strategy).__name__}, which shards the weights: train without "
                "EMA, or with strategy 'ddp'."
            )
        if stage != "fit":
            return
        self._latest_update_step = trainer.global_step  # a new Trainer counts from 0
        self.swapped, self._tensors, self._raw = False, [], None
        self._device = trainer.strategy.root_device  # Lightning would keep the average on the CPU
        with warnings.catch_warnings():
            # DDPM overrides it to shard, which is refused above.
            warnings.filterwarnings("ignore", ".*overrides the configure_model callback.*")
            super().setup(trainer, pl_module, stage)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning's own update reads a tensor on the device and collects the parameters at every step.
        average, step = self._average_model, trainer.global_step
        if average is None or step <= self._latest_update_step or not self.should_update(step_idx=step - 1):
            return
        if not self._tensors:  # Lightning copies the weights at the very first step
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            models = average.module, pl_module
            self._tensors = [list(m.parameters()) for m in models]
            self._tensors += [list(m.buffers()) for m in models]
            return
        averaged, current, averaged_buffers, buffers = self._tensors
        with torch.no_grad():
            self._average(averaged, current, average.n_averaged)
            for kept, buffer in zip(averaged_buffers, buffers, strict=True):  # they are not averaged
                kept.copy_(buffer)
            average.n_averaged.add_(1)
        self._latest_update_step = step

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self.swapped = not self.swapped

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # At the start and end of a validation, not of its epoch as in Lightning: every callback and the module see the
        # average, in any order. If the module put this callback last, Lightning's hooks would do, and two methods
        # would leave. The other methods would stay, since they do not depend on the order: an update without
        # synchronization, checkpoints from within a validation and after a fit, complete runs, and the raw bound.
        if trainer.state.fn == "fit" and not self.swapped:
            self._swap_models(pl_module)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.raw_bound and isinstance(pl_module, DDPM):
            self._raw = copy(pl_module.evaluation)
            self._raw.begin(trainer, pl_module, "val")

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self._raw is not None and self.swapped and isinstance(pl_module, DDPM):
            self._swap_models(pl_module)
            with trainer.precision_plugin.forward_context():
                self._raw.update(*pl_module.unpack_batch(batch))
            self._swap_models(pl_module)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._raw is not None and self.swapped:
            report = self._raw.finish(trainer)
            pl_module.log(f"{report.key('val')}_raw", report.terms["total"].value)
        self._raw = None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self.swapped:
            self._swap_models(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.swapped:
            self._swap_models(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)  # the module keeps the raw weights, as after other exceptions

    on_fit_end = on_train_end  # Lightning calls only this one if a resumed run is already complete

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes both sets of weights and their names, independent of which one the module holds now."""
        if self._average_model is None:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.swapped:
            raw, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint |= {"state_dict": average, "current_model_state": raw}
        checkpoint["weights"] = {"state_dict": "average", "current_model_state": "raw", "decay": self.decay}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # other commands get the average from ``state_dict``
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
