"""Time that a training step and a reverse step spend in each kind of operator.

Profiles steps of the networks of ``throughput``. A second table compares a step with its convolutions run alone, with
the same shapes, layout and precision: a lower limit for every library that calls the same convolutions.
"""

import itertools
import statistics
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.common.clock import in_turns, seconds
from benchmarks.common.images import image_folder, random_images
from benchmarks.common.report import ratios, spread, table
from benchmarks.libraries.base import PRECISIONS, Setting, channels_last
from benchmarks.libraries.lit_ddpm import LitDDPM

KINDS = {
    "optimizer, weight averaging, gradient norm": ("_foreach_", "_fused_", "linalg_vector_norm"),
    "convolutions": ("conv",),
    "group norm": ("group_norm",),
    "attention": ("attention", "softmax"),
    "matrix products": ("addmm", "::mm", "bmm", "linear"),
    "SiLU": ("silu",),
    "copies and conversions": ("copy_", "::cat", "contiguous", "clone"),
    "additions and multiplications": ("::add", "::mul", "::div", "::sum", "::sub"),
}
"""Parts of the operators' names for each kind; an operator belongs to the first kind that matches."""

OPTIONS = {
    "--widths": {"type": int, "nargs": "+", "default": [32, 64]},
    "--rounds": {"type": int, "default": 5},
    "--steps": {"type": int, "default": 8, "help": "training steps and reverse steps in a round"},
}


def kind_of(name: str) -> str:
    """Returns the kind of an operator."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other operators")


def training(library: LitDDPM, num_steps: int) -> float:
    """Trains and returns the seconds; the first step, whose beginning is unknown, counts as a median one."""
    steps = library.train(num_steps)
    return sum(steps) + statistics.median(steps)


def sampling(library: LitDDPM, num_steps: int) -> float:
    """Samples a batch and returns the seconds."""
    return num_steps * library.sampling(library.setting.batch_size, num_steps)


TASKS = {"training": training, "sampling": sampling}


def shares(work: Callable[[], float]) -> dict[str, float]:
    """Profiles work that returns its seconds.

    Returns:
        The share of each kind of operator, and of the time outside operators (Python, Lightning, waiting).
    """
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        total = 1e6 * work()
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            found[kind_of(event.key)] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / total
    return found | {"outside operators": max(1 - sum(found.values()), 0.0)}


class Convolutions:
    """The convolutions of one call of a network, without the operators between them."""

    def __init__(self, network: nn.Module, images: Tensor, precision: str) -> None:
        self.autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        hooks = [m.register_forward_hook(self._record) for m in network.modules() if isinstance(m, nn.Conv2d)]
        with torch.no_grad(), self.autocast:
            network(images, torch.ones(len(images), dtype=torch.int64, device=images.device))
        for hook in hooks:
            hook.remove()
        self.calls[0][1].requires_grad_(False)  # the images

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.calls.append((module, args[0].detach().clone().requires_grad_(), torch.randn_like(output)))

    def run(self, backward: bool) -> None:
        """Runs all forward passes, and then all backward passes if requested."""
        with torch.set_grad_enabled(backward), self.autocast:
            outputs = [module(x) for module, x, _ in self.calls]
        if backward:
            for output, (module, x, gradient) in zip(reversed(outputs), reversed(self.calls), strict=True):
                inputs = [*module.parameters(), *([x] if x.requires_grad else [])]
                torch.autograd.grad(output, inputs, gradient)


def measure(library: LitDDPM, task: str, rounds: int, num_steps: int) -> dict[str, Any]:
    """Measures the shares of the operators, and the seconds of a step and of its convolutions alone."""
    setting, work, backward = library.setting, TASKS[task], task == "training"
    images = torch.randn(setting.batch_size, 3, 32, 32, device=library.module.device)
    if setting.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    convolutions = Convolutions(library.network, images, setting.precision)

    def convolution_seconds() -> float:
        return statistics.median(seconds(lambda: convolutions.run(backward)) for _ in range(num_steps))

    work(library, 3)  # warm-up, like the next line
    convolutions.run(backward)
    found: dict[str, Any] = {"shares": shares(lambda: work(library, num_steps))}
    contestants = {"steps": lambda: work(library, num_steps) / num_steps, "convolutions": convolution_seconds}
    return found | in_turns(contestants, rounds)


def main(args: Namespace) -> dict[str, Any]:
    """Profiles training and sampling."""
    figures: dict[str, dict[str, Any]] = {task: {} for task in TASKS}
    with image_folder(random_images()) as folder:
        for width, precision in itertools.product(args.widths, PRECISIONS):
            setting = Setting(folder, width=width, precision=precision, channels_last=channels_last(precision))
            library = LitDDPM(setting)
            for task in TASKS:
                figures[task][f"width {width}, {precision}"] = measure(library, task, args.rounds, args.steps)
    for task, columns in figures.items():
        last_shares = list(columns.values())[-1]["shares"]
        kinds = sorted({kind for c in columns.values() for kind in c["shares"]}, key=lambda k: -last_shares.get(k, 0))
        rows = [[kind, *(f"{100 * c['shares'].get(kind, 0):.1f}%" for c in columns.values())] for kind in kinds]
        print(f"Share of the time by operator, {task}:\n\n{table(['operator', *columns], rows)}\n")
    rows = []
    for name, task in itertools.product(figures["training"], TASKS):
        steps, convolutions = figures[task][name]["steps"], figures[task][name]["convolutions"]
        milliseconds = [spread([1000 * value for value in values]) for values in (steps, convolutions)]
        rows.append([f"{task}, {name}", *milliseconds, ratios(steps, convolutions)])
    print(table(["setting", "step (ms)", "convolutions alone (ms)", "ratio"], rows))
    return figures
