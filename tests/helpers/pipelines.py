"""Pipelines of diffusers with random weights, one for each prediction and variance type."""

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from benchmarks.common import pipelines

NETWORK = {**pipelines.NETWORK, "block_out_channels": (16, 32)}


def random_network(**arguments):
    """A ``UNet2DModel`` whose outputs depend on images, timesteps and labels."""
    torch.manual_seed(0)
    network = UNet2DModel(**{**NETWORK, **arguments}).eval()
    with torch.no_grad():
        network.conv_out.weight.mul_(3)
    return network


def random_pipeline(num_steps=30, network=None, **scheduler):
    """A pipeline with random weights; a learned variance has twice the output channels."""
    channels = {"out_channels": 2} if scheduler.get("variance_type") == "learned_range" else {}
    arguments = {"beta_schedule": "squaredcos_cap_v2", **scheduler}
    return DDPMPipeline(
        random_network(**channels, **(network or {})), DDPMScheduler(num_train_timesteps=num_steps, **arguments)
    )
