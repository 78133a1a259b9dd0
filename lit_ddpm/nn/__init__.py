"""Networks; they do not depend on diffusion."""

from lit_ddpm.nn.unet import UNet

__all__ = ["UNet"]
