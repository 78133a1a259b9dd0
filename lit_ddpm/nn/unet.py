"""The U-Net of Ho et al. 2020 (appendix B): a map from a sequence, image or volume and a number to one of its size."""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least, check_one_of
from lit_ddpm._internal.config import Configurable

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""The convolution for each number of dimensions."""

Module = TypeVar("Module", bound=nn.Module)


class UNet(Configurable, nn.Module):
    """Residual blocks with group norm at several resolutions, self-attention at some of them, and skip connections.

    Any size works: each level has half the size of the one above, rounded up.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; those of the input if None.
        width: Channels at full resolution.
        multipliers: The width of each level as a multiple of `width`; their number is the number of levels.
        num_blocks: Residual blocks of each level of the encoder; the decoder has one more.
        attention_levels: The levels with self-attention after each block; level 0 is full resolution.
        head_channels: Channels of an attention head.
        dropout: The dropout probability inside each residual block.
        num_classes: The number of classes, or None for a network without labels.
        fourier_features: Exponents n of the additional input channels ``sin(2^n pi x)`` and ``cos(2^n pi x)``, which
            resolve neighboring pixel levels (Kingma et al. 2021, appendix C).
        activation_checkpointing: Recompute each block in the backward pass to save memory.
        dims: The number of dimensions next to the channels: 1 for sequences, 2 for images, 3 for volumes.
        cond_channels: Channels of the condition, an input of any resolution next to x; None for a network without one.
        time: What it gets as t: ``"t"``, the timestep, or ``"log_snr"``, a function of the noise level that does not
            depend on T; see `NetworkTime`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        num_blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        head_channels: int = 64,
        dropout: float = 0.1,
        num_classes: int | None = None,
        fourier_features: Sequence[int] = (),
        activation_checkpointing: bool = False,
        dims: int = 2,
        cond_channels: int | None = None,
        time: Literal["t", "log_snr"] = "t",
    ) -> None:
        super().__init__()
        check_at_least(
            self, 1, in_channels=in_channels, width=width, num_blocks=num_blocks, cond_channels=cond_channels
        )
        check_one_of("UNet", CONVOLUTIONS, dims=dims)
        if not multipliers or min(multipliers) < 1:
            raise InputError(f"multipliers = {list(multipliers)} of UNet must be one or more numbers of at least 1.")
        if not set(attention_levels) <= set(range(len(multipliers))):
            levels = f"0..{len(multipliers) - 1}, one for each multiplier"
            raise InputError(f"attention_levels = {list(attention_levels)} of UNet must be among {levels}.")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout = {dropout} of UNet must be in [0, 1).")
        self.in_channels = in_channels
        self.out_channels = out_channels if out_channels is not None else in_channels
        self.width = width
        self.multipliers = tuple(multipliers)
        self.num_blocks = num_blocks
        self.attention_levels = tuple(attention_levels)
        self.head_channels = head_channels
        self.dropout = dropout
        self.num_classes = num_classes
        self.fourier_features = tuple(fourier_features)
        self.activation_checkpointing = activation_checkpointing
        self.dims = dims
        self.cond_channels = cond_channels
        self.time = time

        widths = [width * multiplier for multiplier in multipliers]
        emb_width = 4 * width
        self.time_embedding = nn.Sequential(nn.Linear(width, emb_width), nn.SiLU(), nn.Linear(emb_width, emb_width))
        # The last entry means "no label".
        self.label_embedding = nn.Embedding(num_classes + 1, emb_width) if num_classes is not None else None

        def block(channels: int, new_channels: int, attend: bool) -> UNetBlock:
            num_heads = max(1, new_channels // head_channels) if attend else 0
            return UNetBlock(channels, new_channels, emb_width, dropout, num_heads, dims)

        conv = CONVOLUTIONS[dims]
        input_channels = in_channels * (1 + 2 * len(self.fourier_features)) + (cond_channels or 0)
        self.conv_in = conv(input_channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        channels, skips = width, [width]
        for level in range(len(widths)):
            if level > 0:
                self.down.append(conv(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
            for _ in range(num_blocks):
                self.down.append(block(channels, widths[level], level in attention_levels))
                channels = widths[level]
                skips.append(channels)
        self.middle = nn.ModuleList([block(channels, channels, attend=True), block(channels, channels, attend=False)])
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(num_blocks + 1):
                self.up.append(block(channels + skips.pop(), widths[level], level in attention_levels))
                channels = widths[level]
            if level > 0:
                self.up.append(Upsample(channels, dims))
        self.norm_out = GroupNorm(channels)
        self.conv_out = zero_init(conv(channels, self.out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Maps ``[B, in_channels, *size]`` and a number `t` for each sample ``[B]`` to ``[B, out_channels, *size]``.

        A `label` is int64 ``[B]`` in ``0..num_classes``, where `num_classes` means "no label", as None does. The
        condition `cond` ``[B, cond_channels, ...]`` is resized to the size of x by nearest neighbors.
        """
        emb = self.time_embedding(sinusoidal_embedding(t, self.width).to(x.dtype))
        if self.label_embedding is not None:
            if label is None:
                label = torch.full_like(t, self.label_embedding.num_embeddings - 1, dtype=torch.int64)
            emb = emb + self.label_embedding(label)
        elif label is not None:
            raise InputError("this UNet is unconditional and does not take a label: its num_classes is None.")
        emb = F.silu(emb)

        waves = [f(2**n * math.pi * x) for n in self.fourier_features for f in (torch.sin, torch.cos)]
        h = self.conv_in(torch.cat([x, *waves, *self._resized(cond, x)], dim=1))
        skips = [h]
        for layer in self.down:
            h = self._run(layer, h, emb) if isinstance(layer, UNetBlock) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = self._run(layer, h, emb)
        for layer in self.up:
            if isinstance(layer, Upsample):
                h = layer(h, size=skips[-1].shape[2:])
            else:
                h = self._run(layer, torch.cat([h, skips.pop()], dim=1), emb)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out

    def _resized(self, cond: Tensor | None, x: Tensor) -> list[Tensor]:
        """Returns the condition in the size of x, or an empty list for a network without one."""
        if self.cond_channels is None:
            if cond is not None:
                raise InputError("this UNet does not take a condition: its cond_channels is None.")
            return []
        if cond is None or cond.ndim != x.ndim or cond.shape[1] != self.cond_channels:
            needed = [len(x), self.cond_channels, *x.shape[2:]]
            raise InputError(
                f"cond is {None if cond is None else list(cond.shape)}: a UNet with cond_channels = "
                f"{self.cond_channels} needs {needed}, or another resolution of it."
            )
        same = cond.shape[2:] == x.shape[2:]
        return [cond.to(x.dtype) if same else F.interpolate(cond.to(x.dtype), list(x.shape[2:]), mode="nearest")]

    def _run(self, layer: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        checkpointed = self.activation_checkpointing and self.training
        out: Tensor = checkpoint(layer, h, emb, use_reentrant=False) if checkpointed else layer(h, emb)
        return out


class UNetBlock(nn.Module):
    """A residual block with an embedding added between its convolutions, and self-attention if `num_heads` > 0."""

    def __init__(
        self, in_channels: int, out_channels: int, emb_width: int, dropout: float, num_heads: int = 0, dims: int = 2
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.project_emb = nn.Linear(emb_width, out_channels)
        self.norm2 = GroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv(out_channels, out_channels, 3, padding=1))
        self.shortcut = conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = SelfAttention(out_channels, num_heads, dims) if num_heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Maps ``[B, in_channels, *size]`` and an embedding ``[B, emb_width]`` to ``[B, out_channels, *size]``."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.project_emb(emb)[(..., *[None] * (x.ndim - 2))]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.attention(self.shortcut(x) + h)
        return out


class GroupNorm(nn.GroupNorm):
    """Group norm with up to 32 groups of at least 4 channels.

    Groups of a single channel would remove the embedding, since it is constant over a channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(channels, min(32, max(1, channels // 4))), channels, eps=1e-6)

    @override
    def forward(self, input: Tensor) -> Tensor:
        # In bfloat16 torch's kernel for channels-last memory on a CPU is several times as slow below 1,024 positions.
        small = input.device.type == "cpu" and math.prod(input.shape[2:]) < 1024
        if small and input.dtype == torch.bfloat16 and not torch.is_grad_enabled():
            input = input.contiguous()
        return super().forward(input)


class SelfAttention(nn.Module):
    """Residual self-attention over all positions."""

    def __init__(self, channels: int, num_heads: int, dims: int = 2) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels are not divisible by {num_heads} attention heads of UNet.")
        self.num_heads = num_heads
        self.norm = GroupNorm(channels)
        self.qkv = CONVOLUTIONS[dims](channels, 3 * channels, 1)
        self.project = zero_init(CONVOLUTIONS[dims](channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, *size]`` to the same shape."""
        batch, channels, *size = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.num_heads, channels // self.num_heads, math.prod(size))
        q, k, v = qkv.transpose(3, 4).unbind(1)
        if x.is_cuda or not torch.is_grad_enabled():
            # Fused kernels need the channels of a head to be contiguous; with gradients they are not faster on a CPU.
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(batch, channels, *size)
        out: Tensor = x + self.project(h)
        return out


class Upsample(nn.Module):
    """Resizes to a given size by nearest neighbors, then applies a convolution."""

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[dims](channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Maps ``[B, C, ...]`` to ``[B, C, *size]``."""
        out: Tensor = self.conv(F.interpolate(x, size=list(size), mode="nearest"))
        return out


def sinusoidal_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Returns sines and cosines of `t` ``[B]``, float32 ``[B, width]`` (Vaswani et al. 2017)."""
    angle = t[:, None].float() * sinusoidal_frequencies(width, max_period, t.device)
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width % 2))


def sinusoidal_frequencies(width: int, max_period: float = 10_000.0, device: torch.device | None = None) -> Tensor:
    """Returns the angular frequencies of `sinusoidal_embedding`, float32 ``[width // 2]``."""
    half = width // 2
    return torch.exp(-math.log(max_period) * torch.arange(half, device=device, dtype=torch.float32) / half)


def zero_init(module: Module) -> Module:
    """Sets every parameter of `module` to zero, so that its branch starts as the zero function."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
