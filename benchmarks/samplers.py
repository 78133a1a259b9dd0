"""Network calls against FID for each sampler, on a model of the digits.

python -m benchmarks.samplers runs/digits/checkpoints/best.ckpt

Prints a Markdown table: mean and standard deviation over seeds of the FID of 1,000 images in the digits' features.
"""

import argparse
import statistics

import torch

from benchmarks.digits_classifier import as_uint8
from lit_ddpm import DDPM, AncestralSampler, DDIMSampler, DPMSolverSampler, Sampler
from lit_ddpm.data import DigitsDataModule, to_uint8
from lit_ddpm.metrics.digits import DigitsFeatures
from lit_ddpm.metrics.features import extract
from lit_ddpm.metrics.fid import RealStatistics, sample_metrics

SAMPLERS: dict[str, type[Sampler]] = {
    "ancestral": AncestralSampler,
    "DDIM": DDIMSampler,
    "DPM-Solver++(2M)": DPMSolverSampler,
}


def main() -> None:
    """Draws, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a model of the digits")
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 10, 25, 50, 100])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()

    module = DDPM.load_from_checkpoint(args.checkpoint, map_location="cpu")
    extractor = DigitsFeatures()
    real = RealStatistics.of_features(extract(extractor, as_uint8(DigitsDataModule().splits()["train"]))[0])
    every = module.denoiser.schedule.num_steps

    def fid(sampler: Sampler) -> str:
        values = []
        for seed in range(args.seeds):
            images = to_uint8(module.sample(args.images, seed, sampler=sampler), module.levels)
            features = torch.cat([extract(extractor, part)[0] for part in images.split(500)])
            values.append(sample_metrics(real, features, kid_subsets=1)["fid"])
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread}"

    print(f"| network calls | {' | '.join(SAMPLERS)} |\n| --- |{' --- |' * len(SAMPLERS)}")
    for calls in args.calls:
        print(f"| {calls} | {' | '.join(fid(kind(calls)) for kind in SAMPLERS.values())} |", flush=True)
    print(f"| {every}, all | {fid(AncestralSampler())} |{' |' * (len(SAMPLERS) - 1)}")
    print(f"\nFID of {args.images:,} images, {args.seeds} seeds.")


if __name__ == "__main__":
    main()
