"""Coverage of the estimated bound's error bars: repeated estimates against the exact bound, on a model of the digits.

Each repetition has other noise; the images are those of the test split. Prints how often the estimate lies within two
standard errors over noise of the exact bound, and the size of that error: with timesteps drawn uniformly, and with
importance sampling by the second moments that the exact bound of the validation split gives, as a fit does.
"""

import math
import statistics
from argparse import Namespace
from typing import Any

from torch import Tensor

from lit_ddpm import DDPM, variational_bound
from lit_ddpm.data import DigitsDataModule, to_float
from lit_ddpm.diffusion.ledger import Entry, Ledger

OPTIONS = {
    "checkpoint": {"help": "a model of the digits"},
    "--share": {"type": float, "default": 0.05, "help": "share of the exact bound's network calls"},
    "--repetitions": {"type": int, "default": 100},
}


def main(args: Namespace) -> dict[str, Any]:
    """Repeats the estimate."""
    module = DDPM.load_from_checkpoint(args.checkpoint, map_location="cpu")
    splits = DigitsDataModule().splits()
    test, validation = (to_float(splits[name].images, DigitsDataModule.levels) for name in ("test", "val"))
    num_steps = module.denoiser.schedule.num_steps
    calls = max(2, int(args.share * num_steps))
    decoder = module.decoder
    assert decoder is not None
    assert decoder.levels == DigitsDataModule.levels

    def diffusion(num_calls: int, seed: int, second_moment: Tensor | None = None) -> Entry:
        ledger = Ledger(num_steps, num_calls)
        ledger.update(
            variational_bound(module.denoiser, test, decoder, num_calls, seed=seed, second_moment=second_moment)
        )
        return ledger.report().terms["diffusion"]

    exact = diffusion(num_steps, seed=0)
    figures: dict[str, Any] = {"exact": exact.value}
    print(f"exact: {exact.value:.4f} ± {exact.se_noise:.4f} bits/dim from {num_steps} network calls per image")
    importance = variational_bound(module.denoiser, validation, decoder).second_moment
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
    return figures
