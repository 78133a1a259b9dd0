"""Networks."""

from lit_ddpm.nn.unet import UNet

__all__ = ["UNet"]
