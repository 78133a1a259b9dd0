"""`UNet` as a ``UNet2DModel`` of diffusers, where one with the same outputs exists."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.extras import import_extra
from lit_ddpm.nn.unet import SelfAttention, UNet, UNetBlock, Upsample, sinusoidal_frequencies


def to_unet2d(network: UNet, image_size: Sequence[int]) -> nn.Module:
    """Returns a ``UNet2DModel`` with the outputs of a `UNet` for images of ``(H, W)``; its timesteps are 0..T-1.

    Raises:
        ValueError: If there is none; the message names the setting.
    """
    config = _config(network, image_size)
    unet: nn.Module = import_extra("diffusers", needed_by="an export").UNet2DModel(**config)
    unet.load_state_dict(dict(_weights(network)))
    return unet.eval()


def _config(network: UNet, image_size: Sequence[int]) -> dict[str, Any]:
    """Returns the arguments of the ``UNet2DModel``."""
    levels = len(network.multipliers)
    widths = [network.width * multiplier for multiplier in network.multipliers]
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    heads = {m.qkv.in_channels: m.num_heads for m in network.modules() if isinstance(m, SelfAttention)}
    head_channels = {channels // number for channels, number in heads.items()}
    one_head, halved = set(heads.values()) == {1}, not any(n % 2 ** (levels - 1) for n in image_size)
    for name, value, fits, reason in (
        ("dims", network.dims, network.dims == 2, "it must be 2"),
        ("fourier_features", list(network.fourier_features), not network.fourier_features, "it must be empty"),
        ("cond_channels", network.cond_channels, network.cond_channels is None, "it must be None"),
        ("image_shape", list(image_size), halved, "each level must halve it"),
        ("width", network.width, len(groups) == 1, f"its group norms have {sorted(groups)} groups, not one number"),
        ("head_channels", network.head_channels, len(head_channels) == 1 or one_head, "it must divide all widths"),
    ):
        if not fits:
            raise InputError(
                f"{name} = {value} of UNet has no UNet2DModel: {reason}. Networks for export can be trained as "
                "lit_ddpm.nn.DiffusersUNet."
            )
    attended = [level in network.attention_levels for level in range(levels)]
    return {
        "sample_size": image_size[0] if len(set(image_size)) == 1 else tuple(image_size),
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "freq_shift": 0,
        "flip_sin_to_cos": False,
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attended),
        "up_block_types": tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attended)),
        "layers_per_block": network.num_blocks,
        "attention_head_dim": None if one_head else head_channels.pop(),
        "dropout": network.dropout,
        "norm_num_groups": groups.pop(),
        "norm_eps": network.norm_out.eps,
        "num_class_embeds": None if network.num_classes is None else network.num_classes + 1,
    }


def _weights(network: UNet) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights under their names in a ``UNet2DModel``."""
    yield from _named("conv_in", network.conv_in)
    first, _, second = network.time_embedding
    for name, value in _named("time_embedding.linear_1", first):
        yield name, _of_zero_based_time(value, network.width) if name.endswith("weight") else value
    yield from _named("time_embedding.linear_2", second)
    if network.label_embedding is not None:
        yield from _named("class_embedding", network.label_embedding)

    level = index = 0
    for layer in network.down:
        if isinstance(layer, UNetBlock):
            yield from _block(f"down_blocks.{level}", index, layer)
            index += 1
        else:  # the convolution before the blocks of the next level
            yield from _named(f"down_blocks.{level}.downsamplers.0.conv", layer)
            level, index = level + 1, 0
    for index, layer in enumerate(network.middle):
        assert isinstance(layer, UNetBlock)
        yield from _block("mid_block", index, layer)
    level = index = 0
    for layer in network.up:
        if isinstance(layer, UNetBlock):
            yield from _block(f"up_blocks.{level}", index, layer)
            index += 1
        elif isinstance(layer, Upsample):
            yield from _named(f"up_blocks.{level}.upsamplers.0.conv", layer.conv)
            level, index = level + 1, 0
    yield from _named("conv_norm_out", network.norm_out)
    yield from _named("conv_out", network.conv_out)


def _block(prefix: str, index: int, block: UNetBlock) -> Iterator[tuple[str, Tensor]]:
    name = f"{prefix}.resnets.{index}"
    parts = {"norm1": block.norm1, "conv1": block.conv1, "time_emb_proj": block.project_emb}
    parts |= {"norm2": block.norm2, "conv2": block.conv2}
    if not isinstance(block.shortcut, nn.Identity):
        parts["conv_shortcut"] = block.shortcut
    for part, layer in parts.items():
        yield from _named(f"{name}.{part}", layer)
    attention = block.attention
    if isinstance(attention, SelfAttention):
        name = f"{prefix}.attentions.{index}"
        yield from _named(f"{name}.group_norm", attention.norm)
        for values in ("weight", "bias"):
            for part, value in zip("qkv", getattr(attention.qkv, values).chunk(3), strict=True):
                yield f"{name}.to_{part}.{values}", value.flatten(1) if values == "weight" else value
            value = getattr(attention.project, values)
            yield f"{name}.to_out.0.{values}", value.flatten(1) if values == "weight" else value


def _named(name: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for parameter, value in layer.named_parameters():
        yield f"{name}.{parameter}", value


def _of_zero_based_time(weight: Tensor, width: int) -> Tensor:
    """Returns the weight of the first linear layer for the embedding of t - 1.

    The pair of sin(w t) and cos(w t) is that of t - 1 rotated by the angle w.
    """
    frequency = sinusoidal_frequencies(width).double()
    half = len(frequency)
    sin, cos, padding = weight.detach().double().tensor_split([half, 2 * half], dim=1)
    rotated = (sin * frequency.cos() - cos * frequency.sin(), sin * frequency.sin() + cos * frequency.cos(), padding)
    return torch.cat(rotated, dim=1).to(weight)
