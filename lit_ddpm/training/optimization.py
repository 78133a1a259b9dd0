"""How a module takes its steps: the optimizer, clipping, and steps that are not finite."""

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm.training.distributed import SHARDED


class Optimization(LightningModule):
    """A LightningModule with one optimizer, which leaves out the steps whose gradients are not finite.

    Its arguments are those of `DDPM` with the same names.

    Attributes:
        skipped_steps: How many steps were left out in this fit.
        last_losses: The timesteps and losses of the last training batch, for the message.
    """

    def __init__(
        self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None, max_skipped_steps: int
    ) -> None:
        super().__init__()
        check_at_least(self, 0, max_skipped_steps=max_skipped_steps)
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        self.last_losses: tuple[Tensor, Tensor] | None = None
        self._gradient_norm: Tensor | None = None  # between a backward pass and its step
        self._make_optimizer = _Factory(optimizer)
        self._make_lr_scheduler = None if lr_scheduler is None else _Factory(lr_scheduler)

    def configure_optimizers(self) -> Any:
        """The optimizer over all trainable parameters, and its scheduler if there is one."""
        optimizer = self._make_optimizer(p for p in self.parameters() if p.requires_grad)
        if self._make_lr_scheduler is None:
            return optimizer
        scheduler = self._make_lr_scheduler(optimizer)
        if (rate := min(group["lr"] for group in optimizer.param_groups)) < 0:  # of which some schedulers say nothing
            raise ValueError(f"lr_scheduler makes the learning rate {rate:g}, which must not be negative.")
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config = {"scheduler": scheduler, "interval": "epoch", "monitor": scheduler.monitor}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leaves a step out whose gradients are not finite, up to `max_skipped_steps` of them.

        Raises:
            FloatingPointError: If there were more.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() > 1:
            return  # it leaves such steps out by itself, until it has found the scale that fits
        norm = torch.nn.utils.get_total_norm([p.grad for p in _weights_of(optimizer) if p.grad is not None])
        finite = bool(torch.isfinite(norm))
        if isinstance(self.trainer.strategy, SHARDED):  # where a process sees its own share alone
            finite = self.trainer.strategy.reduce_boolean_decision(finite)
        elif scaler is None:
            self._gradient_norm = norm
        if finite:
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped_steps += 1
        self.log("train/skipped_steps", float(self.skipped_steps))
        t, losses = self.last_losses or (torch.zeros(0), torch.zeros(0))
        timesteps = sorted(set(t[~torch.isfinite(losses).cpu()].tolist()))[:8]
        where = (
            f"step {self.global_step}, at learning rate {optimizer.param_groups[0]['lr']:g}"
            f"{f', for the losses at t = {timesteps}' if timesteps else ''}"
        )
        if self.skipped_steps > self.max_skipped_steps:
            raise FloatingPointError(
                f"the gradients are not finite at {where}: training stopped, since max_skipped_steps = "
                f"{self.max_skipped_steps} of such steps were left out before; checkpoints are kept."
            )
        rank_zero_warn(f"The gradients are not finite at {where}: this step is left out.")

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, by the norm that is known already, and with fused optimizers in bfloat16 too."""
        norm, self._gradient_norm = self._gradient_norm, None
        if norm is None or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(_weights_of(optimizer), gradient_clip_val, norm)


def _weights_of(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


class _Factory:
    """A function that a deep copy shares: from the command line it holds the whole of it, processes and all."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def __call__(self, argument: Any) -> Any:
        return self.make(argument)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Factory":
        return self
