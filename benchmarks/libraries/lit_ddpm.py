"""`lit_ddpm` with Lightning's Trainer, the logger of a run directory and `EMA`."""

import contextlib
import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast
from unittest import mock

import lightning
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from benchmarks.common.fits import shipped_module, silent_trainer
from benchmarks.libraries.base import Budget, Library, Setting, StepTimer
from lit_ddpm import DDPM, AdaptiveTimesteps, DDIMSampler, Denoiser, UNet
from lit_ddpm.callbacks import EMA
from lit_ddpm.data import ImageDataModule, ImageFolderDataModule
from lit_ddpm.training.optimization import GradientGuard
from lit_ddpm.training.run_directory import RunLogger


class LitDDPM(Library):
    """The network of Ho et al. with the optimizer of the `diffusers` guide."""

    ema_decay = 0.9999
    gradient_clip_val = 1.0

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        lightning.seed_everything(setting.seed, verbose=False)
        self.losses: list[float] = []
        self.module = self.make_module()
        self.network = self.module.denoiser.network
        self.data: ImageDataModule = ImageFolderDataModule(
            setting.folder,
            image_size=setting.image_size,
            channels=setting.channels,
            batch_size=setting.batch_size,
            val_size=1,
            test_size=1,
            in_memory="memory" not in setting.disabled,
        )

    def make_module(self) -> DDPM:
        """Makes the module to train."""
        setting = self.setting
        network = UNet(
            setting.channels,
            width=setting.width,
            multipliers=(1, 2, 2, 2),
            num_blocks=2,
            attention_levels=(1,),
            head_channels=2 * setting.width,
            dropout=0.0,
        )

        def adamw(params: Any) -> torch.optim.Optimizer:
            kind = {"fused": True} if "fused" not in setting.disabled else {"foreach": False}
            return torch.optim.AdamW(params, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, **kind)

        if setting.compile:
            network.compile(mode="reduce-overhead" if setting.cuda_graphs else None)
        timesteps = AdaptiveTimesteps() if setting.adaptive else None
        return DDPM(network, timesteps=timesteps, optimizer=adamw, channels_last=setting.channels_last)

    @override
    def run(self, timer: StepTimer) -> None:
        losses: list[Tensor] = []

        def record(trainer: lightning.Trainer, module: DDPM, outputs: Any, *_: Any) -> None:
            trainer.should_stop = timer.step()
            losses.append(outputs["loss"].detach())

        with contextlib.ExitStack() as stack:
            if "sdpa" in self.setting.disabled:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "foreach" in self.setting.disabled:
                stack.enter_context(mock.patch.object(torch, "_foreach_lerp_", _lerp_one_by_one))
            if "guard" in self.setting.disabled:
                stack.enter_context(mock.patch.object(GradientGuard, "on_before_optimizer_step", _only_the_norm))
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            self.ema = EMA(self.ema_decay)
            trainer = silent_trainer(
                max_epochs=-1,
                precision=self.setting.precision,
                gradient_clip_val=self.gradient_clip_val,
                callbacks=[self.ema, LambdaCallback(on_train_batch_end=record)],
                logger=RunLogger(directory),
                default_root_dir=directory,
                num_sanity_val_steps=0,
            )
            trainer.fit(self.module, self.data)
        self.device, self.autocast = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        self.losses += torch.stack(losses).tolist()

    def training_losses(self) -> list[float]:
        """Returns the losses of all training steps so far."""
        return self.losses

    @override
    def sample(self, num_images: int, num_steps: int) -> Tensor:
        self.module.to(self.device)  # a fit ends on the CPU
        with self.autocast():
            return self.module.sample(num_images, sampler=DDIMSampler(num_steps, chunk_size=num_images)).clamp(-1, 1)

    @override
    def denoiser(self) -> Denoiser:
        average = self.ema._average_model
        module = self.module if average is None or self.ema.swapped else average.module
        return copy.deepcopy(cast(DDPM, module).denoiser)


class Configured(LitDDPM):
    """A shipped configuration with a learning rate that is a function of the CPU time, for a `Budget`.

    Args:
        setting: The data, batch size and precision.
        name: The configuration.
        options: Further options of the command.
        ema_decay: See `EMA`.
        gradient_clip_val: See Lightning's Trainer.
        learning_rate: The factor of the learning rate, from the used fraction of the budget and the number of steps.
    """

    def __init__(
        self,
        setting: Setting,
        name: str,
        options: Sequence[str] = (),
        ema_decay: float = 0.999,
        gradient_clip_val: float = 0.01,
        learning_rate: Callable[[float, int], float] | None = None,
    ) -> None:
        self.name, self.options = name, options
        self.ema_decay, self.gradient_clip_val = ema_decay, gradient_clip_val
        self.learning_rate = learning_rate or one_cycle
        super().__init__(setting)

    @override
    def make_module(self) -> DDPM:
        seed = f"--seed_everything={self.setting.seed}"
        return shipped_module(self.name, *self.options, seed, "--model.lr_scheduler=null")

    @override
    def run(self, timer: StepTimer) -> None:
        if isinstance(timer, Budget):
            optimizer = self.module.configure_optimizers()
            factor = partial(self._factor, timer, timer.marks[-1])
            scheduler = {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}
            configured = {"optimizer": optimizer, "lr_scheduler": scheduler}
            self.module.configure_optimizers = lambda: configured  # type: ignore[method-assign]
        super().run(timer)

    def _factor(self, budget: Budget, end: float, num_steps: int) -> float:
        return self.learning_rate(min(budget.used() / end, 1), num_steps)


def one_cycle(fraction: float, num_steps: int, pct_start: float = 0.05) -> float:
    """Returns the factor of the shipped `OneCycle` after a fraction of a training."""
    if fraction < pct_start:
        return _cosine(1 / 25, 1, fraction / pct_start)
    return _cosine(1, 1 / 25_000, (fraction - pct_start) / (1 - pct_start))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def _only_the_norm(guard: GradientGuard, trainer: Any, module: Any, optimizer: torch.optim.Optimizer) -> None:
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    guard._gradient_norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])


def _lerp_one_by_one(averages: list[Tensor], weights: list[Tensor], share: float) -> None:
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, share)
