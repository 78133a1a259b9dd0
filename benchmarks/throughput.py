"""Training and sampling speed of lit_ddpm, diffusers and denoising-diffusion-pytorch.

Trains Ho et al.'s CIFAR-10 network at several widths. `diffusers` gets the same blocks as lit_ddpm and the same number
of parameters; the network of `denoising-diffusion-pytorch` is its nearest. Each library runs in a separate process.
They take turns within each round, and a ratio is that of two measurements in one round. Each is measured in float32 and
in bfloat16 mixed precision; lit_ddpm also compiled, with ``--compile``.
"""

import statistics
from argparse import Namespace
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.common.clock import in_turns
from benchmarks.common.images import image_folder, random_images
from benchmarks.common.report import ratios, spread, table
from benchmarks.libraries import LIBRARIES
from benchmarks.libraries.base import PRECISIONS, Setting, channels_last
from benchmarks.libraries.worker import Worker, ask_in_turns

OPTIONS = {
    "--widths": {"type": int, "nargs": "+", "default": [32, 64]},
    "--rounds": {"type": int, "default": 5},
    "--steps": {"type": int, "default": 8, "help": "training steps and reverse steps in a round"},
    "--compile": {"action": "store_true", "help": "also measure lit_ddpm with a compiled network"},
}


def start_workers(folder: str, width: int, compiled: bool) -> dict[str, Worker]:
    """Starts each library in each precision, and a compiled lit_ddpm if requested."""
    workers: dict[str, Worker] = {}
    for precision in PRECISIONS:
        setting = Setting(folder, width=width, precision=precision, channels_last=channels_last(precision))
        workers |= {f"{name}, {precision}": Worker(name, setting) for name in LIBRARIES}
    if compiled:
        workers[f"lit_ddpm, {precision}, compiled"] = Worker("lit_ddpm", replace(setting, compile=True))
    return workers


def comparison(step: str, seconds: dict[str, list[float]], workers: dict[str, Worker]) -> str:
    """Formats the milliseconds of a step, relative to lit_ddpm in the same precision and to the fastest lit_ddpm."""
    candidates = [name for name in seconds if name.startswith("lit_ddpm")]
    fastest = min(candidates, key=lambda name: statistics.median(seconds[name]))
    rows = []
    for name, values in seconds.items():
        same_precision = seconds[f"lit_ddpm, {workers[name].setting.precision}"]
        milliseconds = spread([1000 * value for value in values])
        rows.append([name, milliseconds, ratios(values, same_precision), ratios(values, seconds[fastest])])
    header = ["program", f"{step} (ms)", "relative to lit_ddpm, same precision", f"relative to {fastest}"]
    return table(header, rows)


def start_up(folder: str, width: int, rounds: int) -> tuple[str, dict[str, Any]]:
    """Measures the time to the second training step and the peak memory."""

    def measure(name: str) -> tuple[float, float]:
        worker = Worker(name, Setting(folder, width=width))
        return worker.start_seconds, worker.close()

    found = in_turns({name: partial(measure, name) for name in LIBRARIES}, rounds)
    seconds, memory = ({name: [pair[i] for pair in pairs] for name, pairs in found.items()} for i in (0, 1))
    rows = [
        [name, *(cell for of in (seconds, memory) for cell in (spread(of[name]), ratios(of[name], of["lit_ddpm"])))]
        for name in LIBRARIES
    ]
    relative = "relative to lit_ddpm"
    header = ["program", "start to second step (s)", relative, "peak memory (GiB)", relative]
    return table(header, rows), {"seconds": seconds, "gib": memory}


def main(args: Namespace) -> dict[str, Any]:
    """Measures training steps, reverse steps, start-up and peak memory."""
    figures: dict[str, Any] = {}
    with image_folder(random_images()) as folder:
        for width in args.widths:
            workers = start_workers(folder, width, args.compile)
            sizes = {name: workers[f"{name}, {PRECISIONS[0]}"].ask("num_parameters") for name in LIBRARIES}
            if sizes["lit_ddpm"] != sizes["diffusers"]:
                raise RuntimeError(f"the networks of lit_ddpm and diffusers differ in size: {sizes}")
            counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            print(f"### Width {width}\n\nParameters: {counts}. Batches of 16 images of 32x32.\n")
            training = ask_in_turns(workers, args.rounds, "training", args.steps)
            print(f"Training step:\n\n{comparison('training step', training, workers)}\n")
            sampling = ask_in_turns(workers, args.rounds, "sampling", 16, args.steps)
            print(f"Reverse step of DDIM:\n\n{comparison('reverse step', sampling, workers)}\n", flush=True)
            figures[f"width {width}"] = {"parameters": sizes, "training": training, "sampling": sampling}
            for worker in workers.values():
                worker.close()
        text, figures["start"] = start_up(folder, args.widths[0], args.rounds)
        print(f"### Start-up and memory, width {args.widths[0]}, float32\n\n{text}")
    return figures
