"""`lit_ddpm` with Lightning's Trainer, the logger of a run directory and `EMA`."""

import contextlib
import tempfile
import time
from typing import Any
from unittest import mock

import lightning
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from benchmarks.common.fits import shipped_module, silent_trainer
from benchmarks.libraries.base import IMAGE_SIZE, Library, Setting, StepTimer
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
        lightning.seed_everything(0, verbose=False)
        self.losses: list[float] = []
        self.module = self.make_module()
        self.network = self.module.denoiser.network
        self.data: ImageDataModule = ImageFolderDataModule(
            setting.folder,
            image_size=IMAGE_SIZE,
            channels=setting.channels,
            batch_size=setting.batch_size,
            val_size=1,
            test_size=1,
            in_memory="memory" not in setting.disabled,
        )

    @classmethod
    @override
    def with_documented_defaults(cls, folder: str) -> Library:
        return _MNISTConfiguration(Setting(folder, channels=1, batch_size=32, precision="bf16-mixed"))

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
    def train(self, num_steps: int, max_seconds: float = float("inf")) -> list[float]:
        timer = StepTimer(num_steps, max_seconds, self.setting.clock_every)
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
            trainer = silent_trainer(
                max_epochs=-1,
                precision=self.setting.precision,
                gradient_clip_val=self.gradient_clip_val,
                callbacks=[EMA(self.ema_decay), LambdaCallback(on_train_batch_end=record)],
                logger=RunLogger(directory),
                default_root_dir=directory,
                num_sanity_val_steps=0,
            )
            trainer.fit(self.module, self.data)
        self.device, self.autocast = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        self.losses += torch.stack(losses).tolist()
        return timer.durations()

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
        return self.module.denoiser


class _MNISTConfiguration(LitDDPM):
    """``configs/mnist.yaml``, with a learning rate that reaches its end within the given seconds."""

    ema_decay = 0.999
    gradient_clip_val = 0.01
    total_steps = 100

    @override
    def make_module(self) -> DDPM:
        return shipped_module("mnist", f"--model.lr_scheduler.total_steps={self.total_steps + 1}")

    @override
    def train(self, num_steps: int, max_seconds: float = float("inf")) -> list[float]:
        """Trains a new module, after 40 steps that measure the speed; their time counts too."""
        start = time.perf_counter()
        step = sorted(super().train(40))[20]
        self.total_steps = int(0.97 * (max_seconds - (time.perf_counter() - start)) / step)
        self.module = self.make_module()
        self.network = self.module.denoiser.network
        return super().train(min(num_steps, self.total_steps), max_seconds - (time.perf_counter() - start))


def _only_the_norm(guard: GradientGuard, trainer: Any, module: Any, optimizer: torch.optim.Optimizer) -> None:
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    guard._gradient_norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])


def _lerp_one_by_one(averages: list[Tensor], weights: list[Tensor], share: float) -> None:
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, share)
