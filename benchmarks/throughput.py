"""How fast three programmes train and draw, side by side: ``python -m benchmarks throughput``.

Ho et al.'s CIFAR-10 network at several widths. `diffusers` gets the same blocks as ours, and the same number of
parameters; the network of `denoising-diffusion-pytorch` is its nearest. Each programme has a process of its own, and
they take turns within each round; a ratio is that of two neighbours in a round, and its spread is over the rounds.
Each is measured in float32 and in bfloat16 mixed precision; ours compiled too, with ``--compile``.
"""

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.programmes import PROGRAMMES, Contestant, Diffusers, Ours, Setting, write_images
from benchmarks.report import machine, ratios, save, spread, table

PRECISIONS = ("32-true", "bf16-mixed")


def random_images(count: int = 512, size: int = 32) -> Tensor:
    """Smooth random pictures, uint8 ``[count, 3, size, size]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=generator)
    return (255 * torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)).to(torch.uint8)


def channels_last(precision: str) -> bool:
    """Whether that is faster, on a CPU as `benchmarks.ladder` found it."""
    return torch.cuda.is_available() or precision == "32-true"


def contestants(folder: str, width: int, compiled: bool) -> dict[str, Contestant]:
    """Each programme in each precision, and ours compiled if that is asked for."""
    found: dict[str, Contestant] = {}
    for precision in PRECISIONS:
        setting = Setting(folder, width=width, precision=precision, channels_last=channels_last(precision))
        found |= {f"{name}, {precision}": Contestant(name, setting) for name in PROGRAMMES}
    if compiled:
        found[f"{Ours.name}, {precision}, compiled"] = Contestant(Ours.name, replace(setting, compile=True))
    return found


def in_turns(all_of_them: dict[str, Contestant], rounds: int, task: str, *args: int) -> dict[str, list[float]]:
    """The seconds of a task for each, in rounds after one that warms up."""
    seconds = defaultdict(list)
    for number in range(rounds + 1):
        for name, contestant in all_of_them.items():
            value = contestant.ask(task, *args)
            if number > 0:
                seconds[name].append(value)
            print(f"{task}, round {number} of {rounds}: {name} {1000 * value:.0f} ms", file=sys.stderr, flush=True)
    return dict(seconds)


def compare(seconds: dict[str, list[float]]) -> str:
    """The programmes' milliseconds, and how many times as long each takes as ours in the same precision and at best."""
    ours = {name: values for name, values in seconds.items() if name.startswith(Ours.name)}
    fastest = min(ours, key=lambda name: statistics.median(ours[name]))
    rows = []
    for name, values in seconds.items():
        same = f"{Ours.name}, {name.split(', ')[1]}"
        rows.append(
            [name, spread([1000 * v for v in values]), ratios(values, seconds[same]), ratios(values, seconds[fastest])]
        )
    return table(["programme", "ms", "times ours in that precision", f"times {fastest}"], rows)


def starts(folder: str, width: int, rounds: int) -> tuple[str, Any]:
    """A table of start-up and peak memory."""
    seconds: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name in PROGRAMMES:
            contestant = Contestant(name, Setting(folder, width=width))
            seconds[name].append(contestant.start_seconds)
            memory[name].append(contestant.end())
    rows = []
    for name in PROGRAMMES:
        figures = [[spread(of[name]), ratios(of[name], of[Ours.name])] for of in (seconds, memory)]
        rows.append([name, *figures[0], *figures[1]])
    header = ["programme", "start to second step, s", "times ours", "peak memory, GiB", "times ours"]
    return table(header, rows), {"seconds": seconds, "gib": memory}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps and reverse steps in a round")
    parser.add_argument("--compile", action="store_true", help="measure ours compiled, too")
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()

    results: dict[str, Any] = {}
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as place:
        folder = write_images(Path(place) / "images", random_images())
        for width in args.widths:
            all_of_them = contestants(folder, width, args.compile)
            sizes = {name: all_of_them[f"{name}, {PRECISIONS[0]}"].ask("size") for name in PROGRAMMES}
            if sizes[Ours.name] != sizes[Diffusers.name]:
                raise RuntimeError(f"the networks are not alike: {sizes}")
            counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            print(f"### Width {width}\n\nParameters: {counts}. Batches of 16 images of 32x32.\n")
            training = in_turns(all_of_them, args.rounds, "training", args.steps)
            print(f"A training step:\n\n{compare(training)}\n")
            drawing = in_turns(all_of_them, args.rounds, "drawing", 16, args.steps)
            print(f"A reverse step of DDIM:\n\n{compare(drawing)}\n", flush=True)
            results[f"width {width}"] = {"parameters": sizes, "training": training, "drawing": drawing}
            for contestant in all_of_them.values():
                contestant.end()
        text, results["start"] = starts(folder, args.widths[0], args.rounds)
        print(f"### Start-up and memory, width {args.widths[0]}, float32\n\n{text}")
    save(args.json, results)


if __name__ == "__main__":
    main()
