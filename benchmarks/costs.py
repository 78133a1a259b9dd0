"""Costs of schedule length, image size, width and ranks, of the exact bound, of FID and of start-up.

Fits ``configs/cifar10.yaml`` on random images by the command, at width 32 in batches of 16, and varies one setting at a
time. The fits take turns, and the figures are those that `Performance` logs. The exact bound, the sampler and the
Inception features are compared with the bare calls of their networks, the exact bound in bfloat16 with that in float32,
and the start-up of the command with the imports of torch and Lightning.
"""

import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.clock import in_turns, seconds
from benchmarks.common.fits import fit, shipped_module
from benchmarks.common.images import image_folder, random_images
from benchmarks.common.metrics import ImageMetrics, random_inception_settings
from benchmarks.common.report import ratios, spread, table
from lit_ddpm import (
    AncestralSampler,
    CosineSchedule,
    Denoiser,
    DiscretizedGaussian,
    VParametrization,
    variational_bound,
)
from lit_ddpm.data import to_float
from lit_ddpm.metrics import InceptionFeatures

LOG_EVERY = 8  # steps
BASELINE = {"num_steps": 1000, "image_size": 32, "width": 32, "ranks": 1}
VARIATIONS: dict[str, tuple[int, ...]] = {
    "num_steps": (100, 4000),
    "image_size": (16, 64),
    "width": (16, 64),
    "ranks": (2,),
}
COMMANDS = {
    "import torch, lightning": ("-c", "import torch, lightning"),
    "import torch, lightning, lit_ddpm": ("-c", "import torch, lightning, lit_ddpm"),
    "lit-ddpm --help": ("-m", "lit_ddpm", "--help"),
}

EVALUATIONS = (("digits", (1, 8, 8), 128), ("mnist", (1, 28, 28), 100), ("cifar10", (3, 32, 32), 8))
"""Networks that are evaluated: the configuration, the shape of an image, and the number of images."""

CALLS = 20  # for each image
PRECISIONS = (("float32", False, True), ("bfloat16", True, False), ("bfloat16, channels-last", True, True))
"""Settings of an evaluation: the title, whether it is in bfloat16, and whether in channels-last memory."""


def options(folder: str, setting: dict[str, int]) -> dict[str, Any]:
    """Returns the options of ``fit`` for a setting and a few steps without validation."""
    return {
        "model.network.width": setting["width"],
        "model.schedule": "lit_ddpm.LinearSchedule",
        "model.schedule.num_steps": setting["num_steps"],
        "data": "lit_ddpm.data.ImageFolderDataModule",
        "data.root": folder,
        "data.image_size": setting["image_size"],
        "data.batch_size": 16 // setting["ranks"],
        "data.val_size": 1,
        "data.test_size": 1,
        "data.flip": False,
        "trainer.max_steps": 4 * LOG_EVERY,
        "trainer.log_every_n_steps": LOG_EVERY,
        "trainer.limit_val_batches": 0,
        "trainer.devices": setting["ranks"],
        "trainer.strategy": "auto" if setting["ranks"] == 1 else "ddp",
        "trainer.enable_checkpointing": False,
        "trainer.callbacks": [{"class_path": f"lit_ddpm.callbacks.{name}"} for name in ("EMA", "Performance")],
    }


def short_fit(folder: str, setting: dict[str, int]) -> dict[str, float]:
    """Fits for a few steps and returns the median of each logged ``perf/`` key, without the first steps."""
    with tempfile.TemporaryDirectory() as place:
        logged = fit("cifar10", Path(place) / "run", options(folder, setting))
    return {key: statistics.median(values[1:]) for key, values in logged.items()}


def settings_table(rounds: int) -> tuple[str, Any]:
    """Measures short fits."""
    settings = {"baseline": BASELINE}
    for key, values in VARIATIONS.items():
        settings |= {f"{key} = {value:,}": BASELINE | {key: value} for value in values}
    if torch.cuda.is_available():
        settings = {name: s for name, s in settings.items() if s["ranks"] <= torch.cuda.device_count()}
    with image_folder(random_images(size=64)) as folder:
        found = in_turns({name: partial(short_fit, folder, setting) for name, setting in settings.items()}, rounds)
    figures = {name: {key: [f[key] for f in fits] for key in fits[0]} for name, fits in found.items()}
    rows = [
        [
            name,
            spread(values["perf/images_per_s"]),
            ratios(figures["baseline"]["perf/images_per_s"], values["perf/images_per_s"]),
            spread([100 * share for share in values["perf/outside_network"]], ".1f"),
            spread(values["perf/peak_memory_gib"], ".2f"),
        ]
        for name, values in figures.items()
    ]
    columns = ["setting", "images/s", "relative time", "outside the network (%)", "peak memory (GiB)"]
    return table(columns, rows), figures


def repeated_calls(network: nn.Module, images: Tensor, t: Tensor, count: int) -> None:
    """Calls a network several times."""
    for _ in range(count):
        network(images, t)


def exact_bound(denoiser: Denoiser, images: Tensor, bfloat16: bool = False) -> Tensor:
    """Returns the bound of each image, from float32 or mixed precision."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        return variational_bound(denoiser, images, DiscretizedGaussian(256)).total


def untrained(name: str, shape: tuple[int, ...], count: int) -> tuple[Denoiser, Tensor]:
    """Returns the network of a configuration as a denoiser of few steps, and random images."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = shipped_module(name).denoiser.network.to(device).eval()
    images = to_float(torch.randint(0, 256, (count, *shape), dtype=torch.uint8, device=device), 256)
    return Denoiser(network, CosineSchedule(CALLS), VParametrization(), clip=True), images


def precision_table(rounds: int) -> tuple[str, Any]:
    """Measures the exact bound in bfloat16, with and without channels-last memory, next to float32."""
    rows, figures = [], {}
    for name, shape, count in EVALUATIONS:
        contestants = {}
        for title, bfloat16, channels_last in PRECISIONS:
            denoiser, images = untrained(name, shape, count)
            denoiser.network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
            contestants[title] = partial(seconds, partial(exact_bound, denoiser, images, bfloat16))
        figures[name] = found = in_turns(contestants, rounds, warm_up=True)
        reference, *others = found.values()
        relative = [ratios(other, reference) for other in others]
        rows.append([f"`{name}`, batches of {count}", spread(reference), *relative])
    first, *others = (title for title, _, _ in PRECISIONS)
    return table(["network", f"{first} (s)", *(f"{title} / {first}" for title in others)], rows), figures


@torch.no_grad()
def evaluation_table(rounds: int) -> tuple[str, Any]:
    """Measures bound and sampler next to as many calls of the network alone."""
    rows, figures = [], {}
    for name, shape, count in EVALUATIONS:
        denoiser, images = untrained(name, shape, count)
        t = torch.full((count,), 2, device=images.device)
        bound = partial(exact_bound, denoiser, images)
        sample = partial(AncestralSampler(chunk_size=count), denoiser, (2 * count, *shape))
        for kind, work, calls in (("exact bound", bound, CALLS), ("ancestral sampler", sample, 2 * CALLS)):
            contestants = {
                "work": partial(seconds, work),
                "network": partial(seconds, partial(repeated_calls, denoiser.network, images, t, calls)),
            }
            title = f"`{name}`, {kind}, batches of {count}"
            figures[title] = found = in_turns(contestants, rounds, warm_up=True)
            rows.append([title, spread(found["network"]), ratios(found["work"], found["network"])])
    return table(["network and work", "network alone (s)", "work / network"], rows), figures


def features_table(rounds: int) -> tuple[str, Any]:
    """Measures the Inception features next to Inception alone, and FID and KID without features."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = random_images(64).to(device)
    with tempfile.TemporaryDirectory() as place:
        extractor = InceptionFeatures(**random_inception_settings(Path(place) / "inception.pth")).to(device)
        metrics = ImageMetrics(extractor, pixels)
        inception = extractor.load().to(device)
    contestants = {"features": partial(extractor, pixels), "network": partial(inception, pixels)}
    found = in_turns({name: partial(seconds, work) for name, work in contestants.items()}, rounds, warm_up=True)
    features = metrics.features(pixels)[0]
    metrics_alone = seconds(lambda: metrics.compare(features, None, kid_subset_size=32))
    row = spread(found["features"]), spread(found["network"]), ratios(found["features"], found["network"])
    text = table(
        ["computation", "time (s)", "network alone (s)", "ratio"],
        [[f"Inception features of {len(pixels)} images", *row]],
    )
    text += f"\n\nFID and KID from the 2,048 features of {len(pixels)} images take {metrics_alone:.1f} s."
    return text, {"features": found, "fid_and_kid": metrics_alone}


def start_table(rounds: int) -> tuple[str, Any]:
    """Measures the start-up of processes, twice in a round."""

    def start(*arguments: str) -> float:
        command = [sys.executable, *arguments]
        return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

    starts = {name: partial(start, *arguments) for name, arguments in COMMANDS.items()}
    found = in_turns(starts, 2 * rounds, warm_up=True)  # the first start reads the files from the disk
    imports = next(iter(found.values()))
    rows = [[f"`{name}`", spread(values), ratios(values, imports)] for name, values in found.items()]
    return table(["command", "time (s)", "relative to the first row"], rows), found


TABLES = {
    "settings": settings_table,
    "evaluation": evaluation_table,
    "precision": precision_table,
    "features": features_table,
    "start": start_table,
}

OPTIONS = {
    "--rounds": {"type": int, "default": 3},
    "--tables": {"nargs": "+", "choices": TABLES, "default": TABLES, "help": "what to measure, by default everything"},
}


def main(args: Namespace) -> dict[str, Any]:
    """Measures fits, evaluation, features and start-up."""
    figures: dict[str, Any] = {}
    for name in args.tables:
        text, figures[name] = TABLES[name](args.rounds)
        print(f"{text}\n", flush=True)
    return figures
