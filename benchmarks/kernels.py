"""What bounds a training step: ``python -m benchmarks kernels``.

Profiles whole training steps of Ho et al.'s CIFAR-10 network, the one of ``benchmarks.throughput``, and gives each kind
of kernel its share of the time. Then runs the convolutions of such a step alone, forward and backward with the same
shapes, layout and precision: no programme that leaves its convolutions to the same library takes less.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.programmes import Ours, Setting, quiet, write_images
from benchmarks.report import machine, save, spread, table
from benchmarks.throughput import PRECISIONS, channels_last, random_images

KINDS = {
    "optimizer, averages, gradient norm": ("_foreach_", "_fused_", "linalg_vector_norm"),
    "convolutions": ("conv",),
    "group norm": ("group_norm",),
    "attention": ("attention", "softmax"),
    "matrix products": ("addmm", "::mm", "bmm", "linear"),
    "SiLU": ("silu",),
    "copies and conversions": ("copy_", "::cat", "contiguous", "clone"),
    "additions and multiplications": ("::add", "::mul", "::div", "::sum", "::sub"),
}
"""What the names of the operators of each kind contain; the first kind that fits counts."""


def kind_of(name: str) -> str:
    """The kind of an operator."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other operators")


def shares(programme: Ours, num_steps: int) -> dict[str, float]:
    """Milliseconds a training step spends in each kind of operator, and in none (Python, Lightning, waiting)."""
    programme.train(3)
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        steps = programme.train(num_steps + 1)
    # Sums are over all steps, the first too, whose duration is not known: it is taken for a median one.
    total = 1000 * (sum(steps) + statistics.median(steps))
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            found[kind_of(event.key)] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000
    found["no operator"] = max(total - sum(found.values()), 0.0)
    return {kind: spent / (num_steps + 1) for kind, spent in found.items()}


class Convolutions:
    """The convolutions of a training step of a network, one after another, without anything between them."""

    def __init__(self, network: nn.Module, images: Tensor, precision: str) -> None:
        self.autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        hooks = [m.register_forward_hook(self._note) for m in network.modules() if isinstance(m, nn.Conv2d)]
        with torch.no_grad(), self.autocast:
            network(images, torch.ones(len(images), dtype=torch.int64, device=images.device))
        for hook in hooks:
            hook.remove()
        self.calls[0][1].requires_grad_(False)  # the images

    def _note(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.calls.append((module, args[0].detach().clone().requires_grad_(), torch.randn_like(output)))

    def seconds(self) -> float:
        """Forward and backward pass of all."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        with self.autocast:
            outputs = [module(x) for module, x, _ in self.calls]
        for output, (module, x, gradient) in zip(reversed(outputs), reversed(self.calls), strict=True):
            inputs = [*module.parameters(), *([x] if x.requires_grad else [])]
            torch.autograd.grad(output, inputs, gradient)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> None:
    """Profiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps in a round")
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()
    quiet()
    columns: dict[str, dict[str, float]] = {}
    bounds, results = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder = write_images(Path(place) / "images", random_images())
        for width in args.widths:
            for precision in PRECISIONS:
                name = f"width {width}, {precision}"
                last = channels_last(precision)
                programme = Ours(Setting(folder, width=width, precision=precision, channels_last=last))
                columns[name] = shares(programme, args.steps)
                images = torch.randn(programme.setting.batch_size, 3, 32, 32, device=programme.module.device)
                if last:
                    images = images.contiguous(memory_format=torch.channels_last)
                alone = Convolutions(programme.network, images, precision)
                alone.seconds()
                steps, convolutions = [], []
                for _ in range(args.rounds):
                    steps.append(programme.training(args.steps))
                    convolutions.append(statistics.median(alone.seconds() for _ in range(args.steps)))
                ratio = [step / alone for step, alone in zip(steps, convolutions, strict=True)]
                milliseconds = [spread([1000 * s for s in seconds]) for seconds in (steps, convolutions)]
                bounds.append([name, *milliseconds, spread(ratio, ".2f")])
                results[name] = {"shares": columns[name], "steps": steps, "convolutions": convolutions}
    kinds = sorted({kind for column in columns.values() for kind in column}, key=lambda k: -columns[name].get(k, 0))
    rows = [
        [kind, *(f"{100 * column.get(kind, 0) / sum(column.values()):.1f}%" for column in columns.values())]
        for kind in kinds
    ]
    print(f"{machine()}\n\nShares of a training step:\n\n{table(['', *columns], rows)}\n")
    print(table(["", "step, ms", "its convolutions alone, ms", "ratio"], bounds))
    save(args.json, results)


if __name__ == "__main__":
    main()
