"""A pipeline that is trained and sampled with diffusers alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddpm
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.functional import mse_loss

from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.data import DigitsDataModule, to_float
from lit_ddpm.diffusion.sampler import standard_normal

NETWORK: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
"""A small network for the digits."""


def train_pipeline(
    scheduler: DDPMScheduler, max_steps: int, max_seconds: float = float("inf"), network: UNet2DModel | None = None
) -> DDPMPipeline:
    """Trains a pipeline on the digits with the loop of the diffusers guide: uniform timesteps and averaged weights.

    The network is `NETWORK` if None.
    """
    data = DigitsDataModule()
    images = to_float(data.splits()["train"].images, data.levels)
    torch.manual_seed(0)
    network = (network or UNet2DModel(**NETWORK)).train()
    ema = EMAModel(network.parameters(), decay=0.995)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    start, T = time.perf_counter(), scheduler.config["num_train_timesteps"]
    for _ in range(max_steps):
        clean = images[torch.randint(len(images), (64,))]
        noise, t = torch.randn_like(clean), torch.randint(0, T, (64,))
        loss = mse_loss(network(scheduler.add_noise(clean, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        if time.perf_counter() - start > max_seconds:
            break
    ema.copy_to(network.parameters())
    return DDPMPipeline(network.eval(), scheduler)


def pipeline_samples(pipeline: DDPMPipeline, num_images: int, seed: int = 0) -> Tensor:
    """Draws a chunk of images with diffusers' own code, from the noise of the same chunk in lit_ddpm; in [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    T = pipeline.scheduler.config["num_train_timesteps"]
    with _noise_of(seed):
        images = pipeline(num_images, num_inference_steps=T, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


@contextmanager
def _noise_of(seed: int) -> Iterator[None]:
    """Replaces the random function of diffusers by the noise of the first chunk of a seed."""
    generator = keyed_generator("sample", seed, 0)

    def draw(shape: Any, **_: Any) -> Tensor:
        return standard_normal(tuple(shape), generator, torch.device("cpu"))

    modules = (pipeline_ddpm, scheduling_ddpm)
    originals = [module.randn_tensor for module in modules]
    for module in modules:
        module.randn_tensor = draw
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.randn_tensor = original
