"""The exponential moving average of the weights."""

import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_ddpm.training.distributed import SHARDED
from lit_ddpm.training.module import DDPM


class EMA(WeightAveraging):
    """Averages the weights over optimizer steps; everything but the training steps uses the average.

    While training validates, and from the end of training on, the module holds the average. A checkpoint's
    ``state_dict`` is the average, so every loader gets it, and ``current_model_state`` the weights that training goes
    on from.

    After ``n`` steps the decay is ``min(decay, (1 + n) / (10 + n))``, so a short run is not an average of its
    beginning.

    Args:
        decay: The largest share of the average that a step keeps, in [0, 1).
        raw_bound: Log the bound of the raw weights too, as ``val/bpd_raw``; a validation takes twice as long.

    Raises:
        ValueError: If `decay` is out of range, or the strategy shards the weights, which Lightning's averaging does not
            support.
    """

    def __init__(self, decay: float = 0.9999, raw_bound: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay} of EMA must be in [0, 1).")
        super().__init__(use_buffers=False, multi_avg_fn=self._average)
        self.decay = decay
        self.raw_bound = raw_bound
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None  # the averages, and the weights they are of
        self._swapped = False  # whether the module holds the average, and the average model the raw weights

    def decay_at(self, num_steps: int) -> float:
        """The decay of the update that follows `num_steps` optimizer steps."""
        return min(self.decay, (1 + num_steps) / (10 + num_steps))

    def _average(self, average: list[Tensor], current: list[Tensor], num_averaged: Any) -> None:
        # Not num_averaged, a tensor on the device: reading it would wait for the device at every step.
        torch._foreach_lerp_(average, current, 1 - self.decay_at(self._latest_update_step))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the average model, or when the same module is fitted again, goes back to its raw weights."""
        if isinstance(trainer.strategy, SHARDED):
            raise ValueError(
                f"EMA does not work with {type(trainer.strategy).__name__}, which shards the weights: train without "
                "EMA, or with strategy 'ddp'."
            )
        if stage == "fit" and self._swapped:
            self._swap_models(pl_module)
        elif stage == "fit":
            self._pairs = None
            self._device = trainer.strategy.root_device  # Lightning would keep the average on the CPU
            with warnings.catch_warnings():
                # DDPM overrides it to shard, which is refused above.
                warnings.filterwarnings("ignore", ".*overrides the configure_model callback.*")
                super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Averages if there was an optimizer step: all weights at once, without waiting for the device."""
        average, step = self._average_model, trainer.global_step
        if average is None or step <= self._latest_update_step or not self.should_update(step_idx=step - 1):
            return
        if self._pairs is None:  # Lightning knows whether this is the first of all steps, which is taken as it is
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._pairs = list(average.module.parameters()), list(pl_module.parameters())
            self._has_buffers = any(True for _ in pl_module.buffers())
            return
        with torch.no_grad():
            self._average(*self._pairs, average.n_averaged)
            if self._has_buffers:  # which are not averaged
                for ours, theirs in zip(average.module.buffers(), pl_module.buffers(), strict=True):
                    ours.copy_(theirs)
        average.n_averaged += 1
        self._latest_update_step = step

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped
        if isinstance(pl_module, DDPM):
            pl_module.averaged = self._swapped

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the module while a fit validates."""
        if trainer.state.fn == TrainerFn.FITTING and not self._swapped:
            self._swap_models(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins an evaluation of the raw weights; the average is in place since `on_validation_start`."""
        if self.raw_bound and isinstance(pl_module, DDPM):
            self._raw = pl_module.new_evaluation("val")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measures the batch with the raw weights too, if that is asked for."""
        if self.raw_bound and self._swapped and isinstance(pl_module, DDPM):
            self._swap_models(pl_module)
            with trainer.precision_plugin.forward_context():
                self._raw.update(*pl_module.unpack_batch(batch))
            self._swap_models(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the bound of the raw weights; the average stays for the callbacks that come after this one."""
        if self.raw_bound and self._swapped and isinstance(pl_module, DDPM):
            report = self._raw.report()
            pl_module.log(f"{report.key('val')}_raw", report.terms["total"].value)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the raw weights back for training to go on."""
        if trainer.state.fn == TrainerFn.FITTING and self._swapped:
            self._swap_models(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module."""
        if not self._swapped:
            self._swap_models(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes both sets of weights and says which is which, whichever of them the module holds now."""
        if self._average_model is None:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            raw, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint |= {"state_dict": average, "current_model_state": raw}
        checkpoint["weights"] = {"state_dict": "average", "current_model_state": "raw", "decay": self.decay}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores both sets of weights for a fit; anything else already has the average from ``state_dict``."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
