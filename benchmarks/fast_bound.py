"""Whether the fast bound's error bars hold: many repetitions of it beside the exact bound, on a model of the digits.

python -m benchmarks.fast_bound runs/digits/checkpoints/best.ckpt

The noise of a repetition is that of another seed; the images are the test split's. Prints how often the estimate lies
within two standard errors over noise of the exact bound, and how large that error is: with timesteps drawn uniformly,
and by the importance that the validation split's exact bound gave, as in the validations of a fit.
"""

import argparse
import math
import statistics

from torch import Tensor

from lit_ddpm import DDPM, variational_bound
from lit_ddpm.data import DigitsDataModule, to_float
from lit_ddpm.diffusion.ledger import Entry, Ledger


def main() -> None:
    """Repeats and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a model of the digits")
    parser.add_argument("--share", type=float, default=0.05, help="of the exact bound's network calls")
    parser.add_argument("--repetitions", type=int, default=100)
    args = parser.parse_args()

    module = DDPM.load_from_checkpoint(args.checkpoint, map_location="cpu")
    splits = DigitsDataModule().splits()
    x_0, x_0_of_validation = (to_float(splits[name].images, DigitsDataModule.levels) for name in ("test", "val"))
    num_steps = module.denoiser.schedule.num_steps
    calls = max(2, int(args.share * num_steps))
    assert module.decoder is None or module.decoder.levels == DigitsDataModule.levels
    decoder = module.decoder
    assert decoder is not None

    def diffusion(num_calls: int, seed: int, second_moment: Tensor | None = None) -> Entry:
        ledger = Ledger(num_steps, num_calls)
        ledger.update(
            variational_bound(module.denoiser, x_0, decoder, num_calls, seed=seed, second_moment=second_moment)
        )
        return ledger.report().terms["diffusion"]

    exact = diffusion(num_steps, seed=0)
    print(f"exact: {exact.value:.4f} ± {exact.se_noise:.4f} bits/dim from {num_steps} network calls an image")
    importance = variational_bound(module.denoiser, x_0_of_validation, decoder).second_moment
    for name, second_moment in (("uniform", None), ("by importance", importance)):
        found = [diffusion(calls, 1 + repetition, second_moment) for repetition in range(args.repetitions)]
        errors = [math.hypot(entry.se_noise, exact.se_noise) for entry in found]
        within = sum(abs(entry.value - exact.value) <= 2 * error for entry, error in zip(found, errors, strict=True))
        print(f"{calls} calls, {name}: {statistics.mean(entry.value for entry in found):.4f} on average")
        print(f"  standard error over noise, as said: {statistics.median(entry.se_noise for entry in found):.4f}")
        print(f"  standard deviation of the repetitions: {statistics.stdev(entry.value for entry in found):.4f}")
        print(f"  within two standard errors of the exact bound: {within} of {args.repetitions}")


if __name__ == "__main__":
    main()
