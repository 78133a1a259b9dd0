"""The network: dilated convolutions at full resolution."""

import math

import torch
from torch import Tensor, nn

from lit_ddpm import Configurable


class InpaintingNetwork(Configurable, nn.Module):
    """Predicts x_0 (`X0Parametrization`) from x_t and the condition, and copies the known pixels.

    The copies make the bound of known pixels zero and keep them in samples. Sines and cosines of x_t resolve the 17
    pixel levels of the digits.

    Args:
        width: The number of features.
        depth: The number of residual blocks; their dilations are 1, 2, 4, 1, 2, 4, ...
        channels: The number of channels of an image.
        time: The meaning of t: ``"log_snr"``, a function of the noise level in [0, 1000], or ``"t"``, the timestep.
    """

    frequencies: Tensor

    def __init__(self, width: int = 64, depth: int = 6, channels: int = 1, time: str = "log_snr") -> None:
        super().__init__()
        self.width, self.depth, self.channels = width, depth, channels  # by which a checkpoint builds the network again
        self.in_channels = self.out_channels = channels  # lit_ddpm compares these three with the data
        self.cond_channels = channels + 1
        self.time = time  # lit_ddpm reads it
        self.register_buffer("frequencies", 10_000 ** -torch.linspace(0, 1, width // 2), persistent=False)
        self.embed_time = nn.Sequential(nn.Linear(2 * (width // 2), width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(5 * channels + self.cond_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(self._block(width, dilation=2 ** (i % 3)) for i in range(depth))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Maps x_t ``[B, C, H, W]``, t ``[B]`` and a condition ``[B, C + 1, H, W]`` to x0_hat ``[B, C, H, W]``."""
        angle = t[:, None] * self.frequencies
        time = self.embed_time(torch.cat([angle.sin(), angle.cos()], dim=1))[:, :, None, None]
        waves = [wave(factor * math.pi * x_t) for factor in (8, 16) for wave in (torch.sin, torch.cos)]
        h = self.first(torch.cat([x_t, *waves, cond], dim=1))
        for block in self.blocks:
            h = h + block(h + time)
        pixels, known = cond[:, :-1], cond[:, -1:] > 0
        return pixels.where(known, x_t + self.last(h))

    @staticmethod
    def _block(width: int, dilation: int) -> nn.Module:
        conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        return nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), conv, nn.SiLU(), nn.Conv2d(width, width, 1))
