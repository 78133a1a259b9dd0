"""What only a GPU shows, within nine minutes: precision, compilation, synchronization, and the speed of diffusers.

Trains and samples Ho et al.'s CIFAR-10 network in several settings, all in one process and in turns. Counts where a
training step waits for the GPU, compares the exact bound and the sampler with the bare calls of their network, and the
bound in each precision with that of the CPU. Then the device tests of the suite run. Without a GPU it runs on the CPU.
"""

import copy
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.clock import in_turns, now, seconds, synchronizations
from benchmarks.common.images import RandomDataModule, image_folder, random_images
from benchmarks.common.report import ratios, spread, table
from benchmarks.costs import repeated_calls
from benchmarks.libraries import library
from benchmarks.libraries.base import Library, Setting
from benchmarks.libraries.lit_ddpm import LitDDPM
from lit_ddpm import AncestralSampler, CosineSchedule, Denoiser, DiscretizedGaussian, variational_bound
from lit_ddpm.data import to_float

BF16 = {"precision": "bf16-mixed"}
FAST = {**BF16, "channels_last": True}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32 without tf32": ("lit_ddpm", {"channels_last": False}),
    "tf32": ("lit_ddpm", {"channels_last": False}),
    "tf32, channels_last": ("lit_ddpm", {"channels_last": True}),
    "bf16-mixed": ("lit_ddpm", {**BF16, "channels_last": False}),
    "bf16-mixed, optimizer not fused": ("lit_ddpm", {**BF16, "channels_last": False, "disabled": ["fused"]}),
    "bf16-mixed, channels_last": ("lit_ddpm", FAST),
    "bf16-mixed, channels_last, AdaptiveTimesteps": ("lit_ddpm", {**FAST, "adaptive": True}),
    "bf16-mixed, channels_last, without SkipNonFinite": ("lit_ddpm", {**FAST, "disabled": ["guard"]}),
    "diffusers, tf32": ("diffusers", {}),
    "diffusers, bf16-mixed": ("diffusers", BF16),
    "bf16-mixed, channels_last, compiled": ("lit_ddpm", {**FAST, "compile": True}),
    "bf16-mixed, channels_last, CUDA graphs": ("lit_ddpm", {**FAST, "compile": True, "cuda_graphs": True}),
    "bf16-mixed, compiled": ("lit_ddpm", {**BF16, "channels_last": False, "compile": True}),
    "diffusers, bf16-mixed, compiled": ("diffusers", {**BF16, "compile": True}),
}
"""The settings of each row; the first is alone without tf32."""

FEW_ROWS = ("float32 without tf32", "bf16-mixed, channels_last", "diffusers, bf16-mixed")
SAMPLED_ROWS = (
    *("float32 without tf32", "tf32", "tf32, channels_last", "bf16-mixed", "bf16-mixed, channels_last"),
    *("diffusers, tf32", "diffusers, bf16-mixed"),
)
WORKERS = min(12, os.cpu_count() or 1)  # that read the images of diffusers; those of lit_ddpm are in memory
COUNTED_STEPS = 12  # in which synchronizations are counted

OPTIONS = {
    "--width": {"type": int, "default": 128, "help": "channels of the network at full resolution"},
    "--batch_size": {"type": int, "default": 128},
    "--steps": {"type": int, "default": 40, "help": "training steps of a round"},
    "--rounds": {"type": int, "default": 2},
    "--minutes": {"type": float, "default": 8.0, "help": "after them no further part begins"},
    "--calls": {"type": int, "default": 50, "help": "network calls for an image in the evaluation"},
    "--few": {"action": "store_true", "help": "measure a few rows, which compile nothing, and run no tests"},
}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allows or forbids tf32 in convolutions and matrix products within a block."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


class Contestant:
    """A row: a library in one setting, with the measurements of its training and sampling."""

    def __init__(self, name: str, folder: str, data: RandomDataModule, args: Namespace) -> None:
        self.name, self.args = name, args
        kind, settings = ROWS[name]
        common = {"width": args.width, "batch_size": args.batch_size, "clock_every": args.steps // 4}
        self.library: Library = library(kind)(Setting(folder, num_workers=WORKERS, **common, **settings))
        if isinstance(self.library, LitDDPM):
            self.library.data = data
        self.tf32 = name != "float32 without tf32"
        self.first_seconds = self.peak_gib = float("nan")

    def _run(self, work: Callable[[], Any]) -> Any:
        with tf32(self.tf32):
            return work()

    def start(self) -> None:
        """Trains for the first time, which compiles and finds the scale of float16, and measures the memory."""
        cuda = torch.cuda.is_available()
        before = now()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            allocated = torch.cuda.memory_allocated()
        self._run(lambda: self.library.train(8))
        self.first_seconds = now() - before
        if cuda:
            self.peak_gib = (torch.cuda.max_memory_allocated() - allocated) / 2**30

    def training(self) -> float:
        """Returns the seconds of a training step."""
        steps: float = self._run(lambda: self.library.training(self.args.steps + 1))
        return steps

    def waits(self) -> Counter[str]:
        """Counts the synchronizations of some training steps by place: the difference of two fits."""
        first, second = (
            self._run(lambda n=n: synchronizations(lambda: self.library.train(n))) for n in (4, 4 + COUNTED_STEPS)
        )
        second.subtract(first)
        return +second

    def sampling(self) -> float:
        """Returns the seconds of a reverse step of DDIM with a batch of images."""
        step: float = self._run(lambda: self.library.sampling(self.args.batch_size, 10))
        return step


def training_table(contestants: dict[str, Contestant], rounds: int) -> tuple[str, Any]:
    """Measures the training steps of all rows in turns, and counts the synchronizations of each."""
    found = in_turns({name: row.training for name, row in contestants.items()}, rounds)
    waits = {name: row.waits() for name, row in contestants.items() if "tf32" not in name and "compiled" not in name}
    first = next(iter(found.values()))
    rows = [
        [
            name,
            spread([1000 * value for value in values]),
            f"{contestants[name].args.batch_size / statistics.median(values):,.0f}",
            ratios(first, values),
            f"{waits[name].total() / COUNTED_STEPS:.1f}" if name in waits else "",
            f"{contestants[name].peak_gib:.1f}",
            f"{contestants[name].first_seconds:.0f}",
        ]
        for name, values in found.items()
    ]
    columns = [
        "training step (ms)",
        "images/s",
        "speed-up",
        "synchronizations",
        "peak memory (GiB)",
        "first 8 steps (s)",
    ]
    text = table(["setting", *columns], rows)
    places = [f"- {name}: {dict(count)}" for name, count in waits.items() if count]
    if places:
        text += f"\n\nSynchronizations of {COUNTED_STEPS} steps by place:\n\n" + "\n".join(places)
    return text, {"seconds": found, "synchronizations": waits}


def sampling_table(contestants: dict[str, Contestant], rounds: int) -> tuple[str, Any]:
    """Measures the reverse steps of the rows that differ in them, in turns; not compiled, which takes minutes."""
    measured = {name: row for name, row in contestants.items() if name in SAMPLED_ROWS}
    found = in_turns({name: row.sampling for name, row in measured.items()}, rounds, warm_up=True)
    first = next(iter(found.values()))
    rows = [[name, spread([1000 * s for s in values]), ratios(first, values)] for name, values in found.items()]
    return table(["setting", "reverse step (ms)", "speed-up"], rows), found


@torch.no_grad()
def evaluation_table(model: LitDDPM, args: Namespace) -> tuple[str, Any]:
    """Compares the exact bound and the ancestral sampler with the bare calls of their network, by batch size."""
    denoiser, num_steps, rows, figures = model.module.denoiser.to(model.device), args.calls, [], {}
    denoiser = Denoiser(denoiser.network, CosineSchedule(num_steps), denoiser.parametrization, clip=True).eval()
    pixels = random_images(4 * args.batch_size)
    for count in (args.batch_size // 2, args.batch_size, 4 * args.batch_size):
        images = to_float(pixels[:count], 256).to(model.device)
        t = torch.ones(count, dtype=torch.int64, device=model.device)

        contestants = {
            "network": partial(repeated_calls, denoiser.network, images, t, num_steps),
            "bound": partial(variational_bound, denoiser, images, DiscretizedGaussian(256)),
            "sampler": partial(AncestralSampler(chunk_size=count), denoiser, tuple(images.shape)),
        }
        with model.autocast():
            found = in_turns({k: partial(seconds, work) for k, work in contestants.items()}, args.rounds, warm_up=True)
        figures[str(count)] = found
        speed = f"{num_steps * count / statistics.median(found['network']):,.0f}"
        rows.append([str(count), speed, *(ratios(found[kind], found["network"]) for kind in ("bound", "sampler"))])
    header = ["images", "network calls (images/s)", "bound / bare calls", "ancestral sampler / bare calls"]
    return table(header, rows), figures


@torch.no_grad()
def precision_table(model: LitDDPM) -> tuple[str, Any]:
    """Compares the bound of four images in each precision with that on the CPU in float32."""
    denoiser = copy.deepcopy(model.module.denoiser).cpu()
    images = to_float(random_images(4), 256)
    measure = partial(variational_bound, decoder=DiscretizedGaussian(256), num_timesteps=16)
    reference = measure(denoiser, images).total
    denoiser.to(model.device)
    found = {}
    for name, allowed, dtype in (
        ("float32 without tf32", False, None),
        ("tf32", True, None),
        ("float16", True, torch.float16),
        ("bfloat16", True, torch.bfloat16),
    ):
        with tf32(allowed), torch.autocast(model.device.type, dtype, enabled=dtype is not None):
            total = measure(denoiser, images.to(model.device)).total
        found[name] = float(((total - reference) / reference).abs().max())
    rows = [[name, f"{value:.1e}"] for name, value in found.items()]
    return table(["precision", "largest relative difference of the bound from float32 on the CPU"], rows), found


def device_tests() -> tuple[str, Any]:
    """Runs the device tests of the suite in another process."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--no-header", "tests/device"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    summary = finished.stdout.strip().splitlines()[-1:] or [finished.stderr[-500:]]
    if finished.returncode:
        print(finished.stdout[-6000:], file=sys.stderr)
    return f"Device tests of the suite: {summary[0]}", summary[0]


def main(args: Namespace) -> dict[str, Any]:
    """Measures all parts, and prints each when it is complete."""
    deadline = time.perf_counter() + 60 * args.minutes
    figures: dict[str, Any] = {}
    contestants: dict[str, Contestant] = {}

    def part(title: str, measure: Callable[[], tuple[str, Any]]) -> None:
        if time.perf_counter() > deadline:
            print(f"### {title}\n\nNot measured: the time of --minutes is over.\n")
            return
        text, figures[title] = measure()
        print(f"### {title}\n\n{text}\n", flush=True)

    data = RandomDataModule(50 * args.batch_size, args.batch_size)
    with image_folder(random_images(32 * args.batch_size)) as folder:
        for name in FEW_ROWS if args.few else ROWS:
            if time.perf_counter() > deadline - 30 * args.minutes:  # half of the time is for the measurements
                print(f"{name}: not measured, since half of --minutes is over.")
                continue
            contestants[name] = Contestant(name, folder, data, args)
            contestants[name].start()
            print(f"{name}: the first steps took {contestants[name].first_seconds:.0f} s", file=sys.stderr, flush=True)
        part("Training", partial(training_table, contestants, args.rounds))
        model = contestants["bf16-mixed, channels_last"].library
        assert isinstance(model, LitDDPM)
        part("Evaluation beyond the network", partial(evaluation_table, model, args))
        part("Precision of the bound", partial(precision_table, model))
        part("Sampling", partial(sampling_table, contestants, args.rounds))
        if not args.few:
            part("Tests", device_tests)
    return figures
