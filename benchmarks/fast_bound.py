"""Coverage of the estimated bound's error bars: repeated estimates against the exact bound, on digits or MNIST.

Then the same for tests to a precision, ``test --target_se``, each with other images and other noise.

Each repetition has other noise; the images are those of the test split. Prints how often the estimate lies within two
standard errors over noise of the exact bound, and the size of that error: with timesteps drawn uniformly, and with
importance sampling by the second moments that the bound of the validation split gives, as a fit does.
"""

import math
import statistics
import time
from argparse import Namespace
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.common.images import MNISTFiles
from lit_ddpm import DDPM, AncestralSampler, Bound, variational_bound
from lit_ddpm.data import DigitsDataModule, to_float
from lit_ddpm.likelihood.report import Entry
from lit_ddpm.likelihood.size import PILOT_CALLS, PILOT_IMAGES, random_order, smallest_test

VALIDATION_CALLS = 200  # for each image, more than a validation of a fit takes

OPTIONS = {
    "checkpoint": {"help": "a model of the digits, or with --root of MNIST"},
    "--root": {"help": "the folder with the files of MNIST's test split"},
    "--num_steps": {"type": int, "help": "T, for a model of log SNR; that of its training if left out"},
    "--share": {"type": float, "default": 0.05, "help": "share of the exact bound's network calls"},
    "--repetitions": {"type": int, "default": 100},
    "--target_se": {"type": float, "default": 0.02},
    "--tests": {"type": int, "default": 20, "help": "tests to that precision"},
}


def main(args: Namespace) -> dict[str, Any]:
    """Repeats the estimate."""
    module = DDPM.load_from_checkpoint(args.checkpoint, map_location="cpu")
    data = DigitsDataModule() if args.root is None else MNISTFiles(args.root)
    splits, levels = data.splits(), data.levels or 256
    test, validation = (to_float(splits[name].images, levels) for name in ("test", "val"))
    if args.num_steps is not None:
        schedule = replace(cast(Any, module.denoiser.schedule), num_steps=args.num_steps)
        settings: dict[str, Any] = {"schedule": schedule, "sampler": AncestralSampler()}  # for any T
        module = DDPM.load_from_checkpoint(args.checkpoint, map_location="cpu", **settings)
    num_steps = module.denoiser.schedule.num_steps
    calls = max(2, int(args.share * num_steps))
    decoder = module.decoder
    assert decoder.levels == levels

    def measured(num_calls: int, seed: int, second_moment: Tensor | None = None, index: Tensor | None = None) -> Bound:
        first, *others = (
            variational_bound(module.denoiser, test[rows], decoder, num_calls, seed, rows, second_moment)
            for rows in (torch.arange(len(test)) if index is None else index).split(128)
        )
        return sum(others, first)

    def diffusion(num_calls: int, seed: int, second_moment: Tensor | None = None) -> Entry:
        return measured(num_calls, seed, second_moment).report().terms["diffusion"]

    start = time.perf_counter()
    exact_report = measured(num_steps, seed=0).report()
    exact_seconds = time.perf_counter() - start
    exact = exact_report.terms["diffusion"]
    figures: dict[str, Any] = {"exact": exact.value}
    print(f"exact: {exact.value:.4f} ± {exact.se_noise:.4f} bits/dim from {num_steps} network calls per image")
    importance = variational_bound(module.denoiser, validation, decoder, min(num_steps, VALIDATION_CALLS)).second_moment
    for name, second_moment in (("uniform", None), ("importance sampling", importance)):
        estimates = [diffusion(calls, 1 + repetition, second_moment) for repetition in range(args.repetitions)]
        errors = [math.hypot(estimate.se_noise, exact.se_noise) for estimate in estimates]
        within = sum(abs(e.value - exact.value) <= 2 * error for e, error in zip(estimates, errors, strict=True))
        values = [estimate.value for estimate in estimates]
        figures[name] = {"values": values, "se_noise": [e.se_noise for e in estimates], "within": within}
        print(f"{calls} calls, {name}: mean {statistics.mean(values):.4f}")
        print(f"  estimated standard error over noise: {statistics.median(figures[name]['se_noise']):.4f}")
        print(f"  standard deviation of the repetitions: {statistics.stdev(values):.4f}")
        print(f"  within two standard errors of the exact bound: {within} of {args.repetitions}", flush=True)

    total, within, costs, errors, times = exact_report.terms["total"].value, 0, [], [], []
    for seed in range(1, args.tests + 1):
        order, start = random_order(len(test), seed), time.perf_counter()
        pilot = measured(PILOT_CALLS, seed, importance, order[:PILOT_IMAGES])
        size = smallest_test(pilot, args.target_se, len(test))
        report = measured(size.num_timesteps, seed, importance, order[: size.num_images]).report()
        calls = len(pilot.index) * pilot.num_calls + report.num_images * report.num_calls
        costs.append(len(test) * num_steps / calls)
        times.append((time.perf_counter() - start) / exact_seconds)
        errors.append(report.terms["total"].se_images)
        within += abs(report.terms["total"].value - total) <= 2 * errors[-1]
    figures["tests"] = {"within": within, "saving": costs, "errors": errors, "times": times}
    print(f"tests to a standard error of {args.target_se:g}, {args.tests} seeds:")
    print(f"  network calls: 1/{statistics.median(costs):.0f} of the exact test (median, with the pilot)")
    print(f"  time: 1/{1 / statistics.median(times):.0f} of the exact test (median)")
    print(
        f"  standard error: {statistics.median(errors):.4f} (median), at most the target in "
        f"{sum(error <= args.target_se for error in errors)} of {args.tests}"
    )
    print(f"  within two standard errors of the exact test: {within} of {args.tests}", flush=True)
    return figures
