"""Checkpoints of other libraries with random weights, as docs/models.md reads them."""

import importlib
import importlib.util
from pathlib import Path

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet

IMPROVED_DIFFUSION = '''
"""A stand-in with the interface of improved-diffusion, which no package index has."""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn


class UNetModel(nn.Module):
    """``forward(x, timesteps, y=None)``: a mean and a position of the variance, with twice the channels."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.time = nn.Linear(1, channels)
        self.out = nn.Conv2d(channels, 6, 3, padding=1)

    def forward(self, x, timesteps, y=None):
        assert y is None and timesteps.max() < 1000
        return self.out(torch.tanh(self.conv(x) + self.time(timesteps.float()[:, None] / 1000)[:, :, None, None]))


def model_and_diffusion_defaults():
    options = {"image_size": 64, "num_channels": 128, "learn_sigma": False}
    return {**options, "diffusion_steps": 1000, "noise_schedule": "linear"}


def create_model_and_diffusion(image_size, num_channels, learn_sigma, diffusion_steps, noise_schedule):
    assert learn_sigma and noise_schedule == "cosine"
    curve = np.cos((np.arange(diffusion_steps + 1) / diffusion_steps + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    return UNetModel(num_channels), SimpleNamespace(betas=betas, num_timesteps=diffusion_steps)
'''


def write_checkpoints() -> None:
    """Writes a file of each library to the current directory, and the stand-in of one that cannot be installed."""
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(Unet(dim=16, dim_mults=(1, 2), channels=1), image_size=8, timesteps=100)
    Path("results").mkdir()
    torch.save({"step": 10, "model": diffusion.state_dict()}, "results/model-10.pt")
    Path("improved_diffusion").mkdir()
    stand_in = Path("improved_diffusion/script_util.py")
    stand_in.write_text(IMPROVED_DIFFUSION)
    spec = importlib.util.spec_from_file_location("script_util", stand_in)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.save(module.UNetModel(32).state_dict(), "ema_0.9999_050000.pt")
    first, last = torch.nn.Conv2d(2, 32, 3), torch.nn.Conv2d(32, 1, 3)
    torch.save(torch.nn.ModuleDict({"first": first, "last": last}).state_dict(), "mine.pt")
