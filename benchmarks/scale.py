"""Time and memory of a training on many GPUs, computed from counted FLOPs, weights and activations.

Counts a network of ImageNet-64 and, as a check, that of CIFAR-10 on torch's meta device, which computes nothing. The
rest are assumptions, printed with the result: the FLOP/s that a GPU reaches, the bandwidth between GPUs, the batch.
"""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.budget import H100_TFLOPS
from benchmarks.common.report import table
from lit_ddpm import UNet
from lit_ddpm.training.cost import PASSES

GIB = 2**30
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "CIFAR-10": (32, {"in_channels": 3, "width": 128, "multipliers": [1, 2, 2, 2]}),
    "ImageNet-64": (
        64,
        {
            "in_channels": 3,
            "width": 192,
            "multipliers": [1, 2, 3, 4],
            "num_blocks": 3,
            "attention_levels": [1, 2, 3],
            "head_channels": 64,
            "num_classes": 1000,
        },
    ),
}
"""Image size and arguments of `UNet`: Ho et al. 2020, and a network of the size of Dhariwal and Nichol 2021."""

OPTIONS = {
    "--gpus": {"type": int, "default": 64},
    "--batch_size": {"type": int, "default": 2048, "help": "images in an optimizer step, on all GPUs"},
    "--steps": {"type": int, "default": 540_000, "help": "optimizer steps"},
    "--tflops": {"type": float, "default": H100_TFLOPS, "help": "TFLOP/s that a GPU reaches in training"},
    "--link": {"type": float, "default": 40.0, "help": "GB/s of a GPU to other machines, in an all-reduce"},
    "--test_images": {"type": int, "default": 50_000},
    "--timesteps": {"type": int, "default": 1000, "help": "network calls for an image in the exact bound"},
}


@dataclass(frozen=True)
class Count:
    """What one image costs in a network, and the size of the network."""

    parameters: int
    largest_layer: int  # parameters that FSDP2 gathers at once
    flops: float  # of a forward pass
    activations: float  # bytes kept for the backward pass, in bfloat16


def count(size: int, settings: dict[str, Any]) -> Count:
    """Counts a network on the meta device."""
    with torch.device("meta"):
        network = UNet(**settings)
        x, t = torch.empty(1, 3, size, size), torch.ones(1, dtype=torch.int64)
        cond = {"label": torch.zeros(1, dtype=torch.int64)} if network.num_classes else {}
    weights = {id(weight) for weight in network.parameters()}
    kept: dict[int, Tensor] = {}  # by identity: several operators keep the same tensor

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in weights:
            kept[id(base)] = base
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, t, **cond)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x, t, **cond)
    layers = [layer for part in network.modules() if isinstance(part, nn.ModuleList) for layer in part]
    sizes = [sum(w.numel() for w in layer.parameters()) for layer in layers if not isinstance(layer, nn.ModuleList)]
    return Count(
        parameters=sum(weight.numel() for weight in network.parameters()),
        largest_layer=max(sizes),
        flops=float(counter.get_total_flops()),
        activations=float(sum(2 * tensor.numel() for tensor in kept.values())),
    )


def plan(found: Count, args: Namespace) -> dict[str, dict[str, str]]:
    """Computes the rows of the table for DDP and for FSDP2, which shards and has no averaged weights."""
    images = args.batch_size / args.gpus
    compute = PASSES * found.flops * images / (args.tflops * 1e12)
    share = (args.gpus - 1) / args.gpus
    rows = {}
    for name in ("DDP", "FSDP2"):
        sharded = name == "FSDP2"
        # All-reduce of float32 gradients, or float32 weights gathered twice and gradients scattered once.
        traffic = (3 if sharded else 2) * share * 4 * found.parameters
        transfer = traffic / (args.link * 1e9)
        hidden = compute if sharded else compute * (PASSES - 1) / PASSES  # during both passes, or the backward pass
        step = compute + max(0.0, transfer - hidden)
        states = (16 / args.gpus if sharded else 20) * found.parameters  # bytes: weights, gradients, Adam, average
        states += 2 * 4 * found.largest_layer if sharded else 0
        evaluation = args.test_images * args.timesteps * found.flops / (args.gpus * args.tflops * 1e12)
        rows[name] = {
            "images on a GPU in a step": f"{images:g}",
            "forward and backward passes (s)": f"{compute:.3f}",
            "gradients and weights sent by a GPU in a step (GB)": f"{traffic / 1e9:.2f}",
            "their time (s)": f"{transfer:.3f}",
            "of it not hidden by the passes (s)": f"{max(0.0, transfer - hidden):.3f}",
            "a step (s)": f"{step:.3f}",
            "images on a GPU in a step from which it is hidden": f"{images * transfer / hidden:.1f}",
            "images/s": f"{args.batch_size / step:,.0f}",
            "the training (days)": f"{args.steps * step / 86_400:.1f}",
            "memory of a GPU: weights, gradients, optimizer, average (GiB)": f"{states / GIB:.1f}",
            "memory of a GPU: activations (GiB)": f"{found.activations * images / GIB:.1f}",
            "a checkpoint (GiB)": f"{(12 if sharded else 16) * found.parameters / GIB:.1f}",
            f"the exact bound of {args.test_images:,} images (hours)": f"{evaluation / 3600:.1f}",
        }
    return rows


def main(args: Namespace) -> dict[str, Any]:
    """Counts the networks and computes the table."""
    found = {name: count(size, settings) for name, (size, settings) in NETWORKS.items()}
    rows = [
        [
            name,
            f"{c.parameters / 1e6:.1f} M",
            f"{c.flops / 1e9:.1f}",
            f"{c.activations / 2**20:.0f}",
            f"{args.tflops * 1e12 / (PASSES * c.flops):,.0f}",
        ]
        for name, c in found.items()
    ]
    header = ["network", "parameters", "GFLOPs of a forward pass", "activations of an image (MiB)"]
    print(table([*header, f"images/s in training at {args.tflops:g} TFLOP/s"], rows))
    print(f"\n{args.gpus} GPUs, {args.batch_size:,} images in a step, {args.steps:,} steps, {args.link:g} GB/s:\n")
    planned = plan(found["ImageNet-64"], args)
    print(table(["ImageNet-64", *planned], [[key, *(p[key] for p in planned.values())] for key in planned["DDP"]]))
    return {"counts": {name: vars(c) for name, c in found.items()}, "plan": planned}
