"""`lit_ddpm` with Lightning's Trainer, the logger of a run directory and `EMA`."""

import contextlib
import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast
from unittest import mock

import lightning
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from benchmarks.common.fits import configured, silent_trainer
from benchmarks.libraries.base import Budget, Library, Setting, StepTimer
from lit_ddpm import DDPM, AdaptiveTimesteps, DDIMSampler, Denoiser, UNet
from lit_ddpm.callbacks import EMA
from lit_ddpm.data import ImageDataModule, ImageFolderDataModule
from lit_ddpm.training.optimization import SkipNonFinite
from lit_ddpm.training.run_directory import RunLogger

GUIDE_OPTIMIZER = (
    *("--model.optimizer.lr=1e-4", "--model.optimizer.betas=[0.95,0.999]", "--model.optimizer.weight_decay=1e-6"),
    *("--trainer.gradient_clip_val=1.0", "--data.batch_size=16"),
)
"""The optimizer steps of the guide of diffusers, without its learning rate and average."""


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
        if setting.channels_last:
            network.to(memory_format=torch.channels_last)
        timesteps = AdaptiveTimesteps() if setting.adaptive else None
        return DDPM(network, timesteps=timesteps, optimizer=adamw)

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
                stack.enter_context(mock.patch.object(SkipNonFinite, "on_before_optimizer_step", _only_the_norm))
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
    """A configuration of the command, with a learning rate that is a function of the CPU time, for a `Budget`.

    Args:
        setting: The data and precision; the batch size is that of the configuration.
        config: The name or file of the configuration.
        options: Further options of the command.
        guide: Replace the optimizer steps by those of the guide of diffusers, with batches of 16.
    """

    def __init__(self, setting: Setting, config: str, options: Sequence[str] = (), guide: bool = False) -> None:
        self.guide = guide
        if guide:
            options = (*options, *GUIDE_OPTIMIZER)
        seed = f"--seed_everything={setting.seed}"
        self.configured = configured(config, *options, seed, "--model.lr_scheduler=null")
        self.gradient_clip_val = self.configured.trainer.gradient_clip_val
        averages = [callback for callback in self.configured.trainer.callbacks if isinstance(callback, EMA)]
        self.ema_decay = 0.9999 if guide else averages[0].decay
        super().__init__(replace(setting, batch_size=self.configured.datamodule.batch_size))

    @override
    def make_module(self) -> DDPM:
        module: DDPM = self.configured.model
        return module

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
        return warm_up(num_steps) if self.guide else one_cycle(min(budget.used() / end, 1))


def warm_up(num_steps: int) -> float:
    """Returns the factor of the learning rate in the guide of diffusers, whose cosine ends after 100,000 steps."""
    return min(num_steps / 500, _cosine(1, 0, num_steps / 100_000))


def one_cycle(fraction: float, pct_start: float = 0.05) -> float:
    """Returns the factor of the shipped `OneCycle` after a fraction of a training."""
    if fraction < pct_start:
        return _cosine(1 / 25, 1, fraction / pct_start)
    return _cosine(1, 1 / 25_000, (fraction - pct_start) / (1 - pct_start))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def _only_the_norm(guard: SkipNonFinite, trainer: Any, module: Any, optimizer: torch.optim.Optimizer) -> None:
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    guard._gradient_norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])


def _lerp_one_by_one(averages: list[Tensor], weights: list[Tensor], share: float) -> None:
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, share)
