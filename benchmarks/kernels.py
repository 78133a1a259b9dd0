"""What bounds a training step and a reverse step: ``python -m benchmarks kernels``.

Profiles steps of Ho et al.'s CIFAR-10 network as ``benchmarks.throughput`` takes them, and gives each kind of kernel
its share of the time. Beside them it runs the convolutions of such a step alone, with the same shapes, layout and
precision: no programme that leaves its convolutions to the same library takes less.
"""

import argparse
import itertools
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.programmes import Ours, Setting, quiet, write_images
from benchmarks.report import machine, now, ratios, save, spread, table
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


def training(programme: Ours, num_steps: int) -> float:
    """The seconds of so many training steps; the first, whose beginning is unknown, is taken for a median one."""
    steps = programme.train(num_steps)
    return sum(steps) + statistics.median(steps)


def drawing(programme: Ours, num_steps: int) -> float:
    """The seconds of so many reverse steps of a batch."""
    return num_steps * programme.drawing(programme.setting.batch_size, num_steps)


def shares(work: Callable[[], float]) -> dict[str, float]:
    """The share of its seconds that work spends in each kind of operator, and in none (Python, Lightning, waiting)."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        total = 1e6 * work()
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            found[kind_of(event.key)] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / total
    return found | {"no operator": max(1 - sum(found.values()), 0.0)}


class Convolutions:
    """The convolutions of one call of a network, one after another, without anything between them."""

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

    def seconds(self, backward: bool) -> float:
        """Forward pass of all, and backward pass."""
        start = now()
        with torch.set_grad_enabled(backward), self.autocast:
            outputs = [module(x) for module, x, _ in self.calls]
        if backward:
            for output, (module, x, gradient) in zip(reversed(outputs), reversed(self.calls), strict=True):
                inputs = [*module.parameters(), *([x] if x.requires_grad else [])]
                torch.autograd.grad(output, inputs, gradient)
        return now() - start


TASKS = {"training": training, "drawing": drawing}


def main() -> None:
    """Profiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps and reverse steps in a round")
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()
    quiet()
    columns: dict[str, dict[str, dict[str, float]]] = {task: {} for task in TASKS}
    bounds, results = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder = write_images(Path(place) / "images", random_images())
        for width, precision in itertools.product(args.widths, PRECISIONS):
            name, last = f"width {width}, {precision}", channels_last(precision)
            programme = Ours(Setting(folder, width=width, precision=precision, channels_last=last))
            images = torch.randn(programme.setting.batch_size, 3, 32, 32, device=programme.module.device)
            if last:
                images = images.contiguous(memory_format=torch.channels_last)
            alone = Convolutions(programme.network, images, precision)
            for task, work in TASKS.items():
                backward = task == "training"
                work(programme, 3)  # to warm up, as the next line
                alone.seconds(backward)
                columns[task][name] = shares(lambda work=work, programme=programme: work(programme, args.steps))
                steps, convolutions = [], []
                for _ in range(args.rounds):
                    steps.append(work(programme, args.steps) / args.steps)
                    convolutions.append(statistics.median(alone.seconds(backward) for _ in range(args.steps)))
                milliseconds = [spread([1000 * s for s in seconds]) for seconds in (steps, convolutions)]
                bounds.append([f"{task}, {name}", *milliseconds, ratios(steps, convolutions)])
                results[f"{task}, {name}"] = {
                    "shares": columns[task][name],
                    "steps": steps,
                    "convolutions": convolutions,
                }
    print(f"{machine()}\n")
    for task, of_task in columns.items():
        last_column = next(reversed(of_task.values()))
        kinds = sorted({kind for column in of_task.values() for kind in column}, key=lambda k: -last_column.get(k, 0))
        rows = [[kind, *(f"{100 * column.get(kind, 0):.1f}%" for column in of_task.values())] for kind in kinds]
        print(f"Shares of the time, {task}:\n\n{table(['', *of_task], rows)}\n")
    print(table(["", "step, ms", "its convolutions alone, ms", "ratio"], bounds))
    save(args.json, results)


if __name__ == "__main__":
    main()
