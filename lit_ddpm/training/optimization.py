"""Optimizer steps: the optimizer and its schedule, clipping, and gradients that are not finite."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, NonFiniteError, check_at_least
from lit_ddpm.training.distributed import SHARDED
from lit_ddpm.training.learning_rate import run_length


class OptimizerFactory:
    """Builds an optimizer and its learning-rate schedule; deep copies of a module share the factory.

    The functions come from the command line and refer to its whole state, which cannot be copied.
    """

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None) -> None:
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler

    def __deepcopy__(self, memo: dict[int, Any]) -> "OptimizerFactory":
        """Returns the same object."""
        return self

    def __call__(self, parameters: Iterable[Tensor], num_steps: Callable[[], float]) -> Any:
        """Returns the optimizer, with its scheduler if there is one, in the form of ``configure_optimizers``.

        `num_steps` returns the number of optimizer steps of the run; it is called only if the scheduler needs it.
        """
        optimizer = self._optimizer(parameters)
        if self._lr_scheduler is None:
            return optimizer
        with run_length(num_steps):
            scheduler = self._lr_scheduler(optimizer)
        if (rate := min(group["lr"] for group in optimizer.param_groups)) < 0:  # some schedulers accept it silently
            raise InputError(f"lr_scheduler sets the learning rate to {rate:g}, which must not be negative.")
        config = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config = {"scheduler": scheduler, "interval": "epoch", "monitor": scheduler.monitor}
        return {"optimizer": optimizer, "lr_scheduler": config}


class SkipNonFinite(Callback):
    """Skips optimizer steps whose gradients are not finite, and clips with the norm that it computed for this check.

    A `DDPM` adds it to a Trainer that has none.

    Args:
        max_skipped_steps: The number of steps of a fit that may be skipped; the next one stops the fit.
    """

    def __init__(self, max_skipped_steps: int = 10) -> None:
        check_at_least(self, 0, max_skipped_steps=max_skipped_steps)
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0  # in this fit
        self._gradient_norm: Tensor | None = None  # between a backward pass and its step
        self._largest_norm = math.inf  # an upper limit of it, known without waiting for a GPU

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.skipped_steps = 0
        self._gradient_norm = None

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of mixed precision with float16
        scale = 1.0 if scaler is None else scaler.get_scale()
        # A fused optimizer divides the gradients by the scale, and skips those that are not finite, in its own step.
        scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        norm = torch.nn.utils.get_total_norm([p.grad for p in _parameters_of(optimizer) if p.grad is not None])
        sharded = isinstance(trainer.strategy, SHARDED)  # each rank has the gradients of its own shard
        if not sharded:
            self._gradient_norm = norm / scale if scaled else norm
        if scale > 1:
            return  # the scaler skips steps that are not finite until it has found the scale
        value = float(norm)  # a GPU has to finish the gradients for it
        finite = math.isfinite(value)
        if sharded:
            finite = trainer.strategy.reduce_boolean_decision(finite)
        else:
            self._largest_norm = value / scale if scaled else value
        if finite:
            return
        if not scaled:
            optimizer.zero_grad(set_to_none=True)
        self.skipped_steps += 1
        pl_module.log("train/skipped_steps", float(self.skipped_steps))
        where = f"step {pl_module.global_step}, at learning rate {optimizer.param_groups[0]['lr']:g}"
        t, losses = getattr(pl_module, "last_losses", (torch.empty(0), torch.empty(0)))  # of a `DDPM`
        if infinite := sorted(set(t[~torch.isfinite(losses).cpu()].tolist())):
            where += f", for the losses at t = {infinite[:8]}"
        if self.skipped_steps > self.max_skipped_steps:
            raise NonFiniteError(
                f"the gradients are not finite at {where}: training stopped, since max_skipped_steps = "
                f"{self.max_skipped_steps} of such steps were skipped before; checkpoints are kept."
            )
        rank_zero_warn(f"The gradients are not finite at {where}: this step is skipped.")

    def clip(
        self, module: LightningModule, optimizer: Optimizer, clip_val: float | None, algorithm: str | None
    ) -> None:
        """Clips as Lightning does, with the known norm; this also allows fused optimizers in mixed precision."""
        norm, largest = self._gradient_norm, self._largest_norm
        self._gradient_norm, self._largest_norm = None, math.inf
        if norm is None or algorithm not in (None, "norm"):
            module.clip_gradients(optimizer, clip_val, algorithm)
        elif clip_val and not largest + 1e-6 <= clip_val:  # torch adds 1e-6; below it would multiply by 1
            torch.nn.utils.clip_grads_with_norm_(_parameters_of(optimizer), clip_val, norm)


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
