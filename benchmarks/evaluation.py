"""Reliability of FID, KID and IS on the digits: their scale, their bias in the number of images, their noise.

Held-out real images and uniform noise give the scale. The samples of one model, in several numbers and with several
seeds, give bias and noise. The time is that of the metrics alone, without sampling and without features.
"""

from argparse import Namespace
from typing import Any

import torch

from benchmarks.common.clock import seconds
from benchmarks.common.metrics import digits_as_uint8, digits_metrics
from benchmarks.common.report import mean_and_deviation, table
from lit_ddpm import DDPM
from lit_ddpm.data import DigitsDataModule, to_uint8

METRICS = ("fid", "kid", "is")

OPTIONS = {
    "checkpoint": {"help": "a model of the digits"},
    "--seeds": {"type": int, "default": 5},
    "--numbers": {"type": int, "nargs": "+", "default": [100, 250, 500, 1000], "help": "numbers of images"},
}


def main(args: Namespace) -> dict[str, Any]:
    """Measures real images, noise and samples."""
    module = DDPM.load_from_checkpoint(args.checkpoint, map_location="cpu")
    metrics, levels, most = digits_metrics(), DigitsDataModule.levels, max(args.numbers)
    test = digits_as_uint8(DigitsDataModule().splits()["test"])
    noise = torch.rand(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    samples = [to_uint8(module.sample(most, seed=seed), module.levels) for seed in range(args.seeds)]
    image_sets = {f"{len(test)}, test split": [test], f"{len(noise):,}, uniform noise": [to_uint8(noise, levels)]}
    image_sets |= {f"{number:,}, model": [images[:number] for images in samples] for number in args.numbers}
    figures: dict[str, Any] = {name: [metrics(images) for images in found] for name, found in image_sets.items()}
    rows = [
        [name, *(mean_and_deviation([values[metric] for values in found]) for metric in METRICS)]
        for name, found in figures.items()
    ]
    features = metrics.features(samples[0])
    figures["seconds"] = seconds(lambda: metrics.compare(*features))
    print(table(["images", *METRICS], rows))
    print(f"\n± over {args.seeds} seeds. The metrics of {most:,} images take {figures['seconds']:.2f} s.")
    return figures
