"""How far the digits' FID, KID and IS can be trusted: their scale, their bias in the number of images, their noise.

python -m benchmarks.evaluation runs/digits/checkpoints/best.ckpt

Real images that no model made and uniform noise give the scale. The images of one model, in several numbers and of
several seeds, give bias and spread. The time is that of the metrics alone, without drawing and without features.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from benchmarks.digits_classifier import as_uint8
from lit_ddpm import DDPM
from lit_ddpm.data import DigitsDataModule, to_uint8
from lit_ddpm.metrics.digits import DigitsFeatures
from lit_ddpm.metrics.features import extract
from lit_ddpm.metrics.fid import RealStatistics, sample_metrics

METRICS = ("fid", "kid", "is")


def main() -> None:
    """Draws, measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a model of the digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--numbers", type=int, nargs="+", default=[100, 250, 500, 1000])
    args = parser.parse_args()

    module = DDPM.load_from_checkpoint(args.checkpoint, map_location="cpu")
    splits = DigitsDataModule().splits()
    extractor = DigitsFeatures()
    real = RealStatistics.of_features(extract(extractor, as_uint8(splits["train"]))[0])
    seconds = []

    def measure(images: Tensor) -> dict[str, float]:
        features, logits = extract(extractor, images)
        start = time.perf_counter()
        values = sample_metrics(real, features, logits, kid_subset_size=len(images), is_splits=1)
        seconds.append(time.perf_counter() - start)
        return values

    print(f"| images | {' | '.join(METRICS)} |\n| --- |{' --- |' * len(METRICS)}")
    noise = torch.rand(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scale = {"test split": as_uint8(splits["test"]), "uniform noise": to_uint8(noise, 17)}
    for name, images in scale.items():
        values = measure(images)
        print(f"| {len(images):,}, {name} | {' | '.join(f'{values[metric]:.3f}' for metric in METRICS)} |")

    drawn = [to_uint8(module.sample(max(args.numbers), seed=seed), module.levels) for seed in range(args.seeds)]
    for number in args.numbers:
        rows = [measure(images[:number]) for images in drawn]
        cells = []
        for metric in METRICS:
            of_metric = [row[metric] for row in rows]
            cells.append(f"{statistics.mean(of_metric):.3f} ± {statistics.stdev(of_metric):.3f}")
        print(f"| {number:,}, model | {' | '.join(cells)} |")
    print(f"\n± over {args.seeds} seeds. The metrics of {max(args.numbers):,} images take {seconds[-1]:.2f} s.")


if __name__ == "__main__":
    main()
