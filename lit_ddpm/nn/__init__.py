"""Networks; they do not depend on diffusion."""

from lit_ddpm.nn.adapter import NetworkAdapter
from lit_ddpm.nn.diffusers import DiffusersUNet
from lit_ddpm.nn.unet import UNet

__all__ = ["DiffusersUNet", "NetworkAdapter", "UNet"]
