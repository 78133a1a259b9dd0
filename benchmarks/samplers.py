"""FID of each sampler against its number of network calls, on a model of the digits.

Prints mean and standard deviation over seeds of the FID of 1,000 images in the digits' features.
"""

from argparse import Namespace

from benchmarks.common.metrics import digits_metrics
from benchmarks.common.report import mean_and_deviation, table
from lit_ddpm import DDPM, AncestralSampler, DDIMSampler, DPMSolverSampler, Sampler
from lit_ddpm.data import to_uint8

SAMPLERS: dict[str, type[Sampler]] = {
    "ancestral": AncestralSampler,
    "DDIM": DDIMSampler,
    "DPM-Solver++(2M)": DPMSolverSampler,
}

OPTIONS = {
    "checkpoint": {"help": "a model of the digits"},
    "--calls": {"type": int, "nargs": "+", "default": [5, 10, 25, 50, 100]},
    "--images": {"type": int, "default": 1000},
    "--seeds": {"type": int, "default": 3},
}


def main(args: Namespace) -> dict[str, dict[str, list[float]]]:
    """Samples and measures."""
    module = DDPM.load_from_checkpoint(args.checkpoint, map_location="cpu")
    metrics = digits_metrics()

    def fids(sampler: Sampler) -> list[float]:
        samples = (module.sample(args.images, seed, sampler=sampler) for seed in range(args.seeds))
        return [metrics(to_uint8(images, module.levels), kid_subsets=1)["fid"] for images in samples]

    figures = {str(calls): {name: fids(kind(calls)) for name, kind in SAMPLERS.items()} for calls in args.calls}
    figures[f"{module.denoiser.schedule.num_steps}, all"] = {"ancestral": fids(AncestralSampler())}
    rows = [
        [calls, *(mean_and_deviation(found[name], ".2f") if name in found else "" for name in SAMPLERS)]
        for calls, found in figures.items()
    ]
    print(table(["network calls", *SAMPLERS], rows))
    print(f"\nFID of {args.images:,} images, {args.seeds} seeds.")
    return figures
