"""How many test images and network calls a bound needs for a given standard error."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader

from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.diffusion.ledger import Ledger
from lit_ddpm.likelihood.bound import variational_bound
from lit_ddpm.likelihood.report import Report
from lit_ddpm.training.split_bound import images_of

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

PILOT_IMAGES = 64
PILOT_CALLS = 16
LEAST_CALLS = 3  # two KL terms: a single one has no strata, and would vary more than the pilot predicts
CONFIDENCE = 0.8  # that the chosen numbers meet the target, which covers the error of the pilot


@dataclass(frozen=True)
class EvaluationSize:
    """The part of an exact test that is measured; None stands for all test images, or all T timesteps."""

    num_images: int | None = None
    num_timesteps: int | None = None
    target_se: float | None = None  # of the total over images and noise, in the unit of the ledger

    def check(self, num_steps: int, available: int | None) -> None:
        """Raises a ValueError if the numbers are not possible with T = `num_steps` and the `available` images."""
        if self.target_se is not None and not self.target_se > 0:
            raise ValueError(f"target_se = {self.target_se} must be positive.")
        if self.target_se is not None and (self.num_images is not None or self.num_timesteps is not None):
            raise ValueError("target_se chooses num_images and num_timesteps: set it alone.")
        if self.num_timesteps is not None and not 2 <= self.num_timesteps <= num_steps:
            raise ValueError(f"num_timesteps = {self.num_timesteps} must be in 2..{num_steps}, the schedule's T.")
        if self.num_images is None and self.target_se is None:
            return
        if available is None:
            raise ValueError("num_images and target_se need a test split of known length, with one data loader.")
        if self.num_images is not None and not 1 <= self.num_images <= available:
            raise ValueError(f"num_images = {self.num_images} must be in 1..{available}, the images of the test split.")

    def images(self, available: int | None, seed: int) -> Tensor | None:
        """Returns the indices of the measured images in increasing order, a random choice; None for all."""
        if self.num_images is None or available is None or self.num_images == available:
            return None
        return random_order(available, seed)[: self.num_images].sort().values


def random_order(count: int, seed: int) -> Tensor:
    """Returns the indices of a test split in the order in which images are chosen."""
    return torch.randperm(count, generator=keyed_generator("test images", seed))


@dataclass(frozen=True)
class Spread:
    """The variance of one image's estimate of the bound per dimension, from a pilot, in squared units of the ledger."""

    images: float  # over the images, without the noise of an estimate
    noise: float  # over the noise of an estimate, times the number of KL terms that it evaluates
    num_images: int  # of the pilot

    @classmethod
    def of_pilot(cls, report: Report) -> "Spread":
        """Returns the variances that the standard errors of a report imply."""
        noise = report.num_images * report.terms["diffusion"].se_noise ** 2
        images = max(report.num_images * report.terms["total"].se_images ** 2 - noise, 0.0)
        return cls(images, noise * (report.num_calls - 1), report.num_images)

    def smallest(self, target_se: float, available: int, num_steps: int) -> EvaluationSize:
        """Returns the numbers of images and timesteps with the fewest network calls for a standard error.

        The variance of the mean over n images with K network calls each is ``(images + noise / (K - 1)) / n``, and
        the cost n K. The variances of the pilot are increased to their upper limits at `CONFIDENCE`.

        Raises:
            ValueError: If all images and timesteps are not enough.
        """
        degrees = self.num_images - 1
        allowed = target_se**2 * float(stats.chi2.ppf(1 - CONFIDENCE, degrees)) / degrees

        def images_for(calls: int) -> int:
            return math.ceil((self.images + self.noise / (calls - 1)) / allowed)

        numbers = range(min(LEAST_CALLS, num_steps), num_steps + 1)
        feasible = [calls for calls in numbers if images_for(calls) <= available]
        if not feasible:
            least = math.sqrt((self.images + self.noise / (num_steps - 1)) / available)
            raise ValueError(
                f"target_se = {target_se:g} is less than the {available:,} images of the test split allow, which is "
                f"about {least:.2g} with all {num_steps:,} timesteps."
            )
        calls = min(feasible, key=lambda calls: calls * max(images_for(calls), 2))
        return EvaluationSize(max(images_for(calls), 2), calls)


def tested_images(trainer: Trainer) -> int | None:
    """Returns the number of test images within ``limit_test_batches``; None if it is unknown."""
    loader, count = trainer.test_dataloaders, images_of(trainer, "test")
    if count is None or not isinstance(loader, DataLoader) or loader.batch_size is None:
        return count
    (num_batches,) = trainer.num_test_batches
    return int(min(count, num_batches * loader.batch_size * trainer.world_size))


def smallest_test(
    trainer: Trainer,
    module: "DDPM",
    target_se: float,
    available: int | None,
    second_moment: Tensor | None,
    seed: int,
) -> EvaluationSize:
    """Measures the spread of the bound on a few test images, and returns the cheapest test for a standard error.

    Every rank measures the same images, so all choose the same test.

    Raises:
        ValueError: If all of the `available` images are not enough.
    """
    loader, num_steps = trainer.test_dataloaders, module.denoiser.schedule.num_steps
    assert isinstance(loader, DataLoader)  # `EvaluationSize.check` has refused others
    assert available is not None
    assert module.decoder is not None
    ledger = Ledger(num_steps, min(PILOT_CALLS, num_steps), module.decoder.levels is not None)
    chosen = random_order(available, seed)[:PILOT_IMAGES]
    pilot = DataLoader(loader.dataset, batch_size=PILOT_IMAGES, sampler=chosen.tolist(), collate_fn=loader.collate_fn)
    for batch in pilot:
        x_0, cond = module.unpack_batch(trainer.strategy.batch_to_device(batch))
        bound = variational_bound(
            module.denoiser, x_0, module.decoder, ledger.num_calls, seed, chosen, second_moment, **cond
        )
        ledger.update(bound)
    size = Spread.of_pilot(ledger.report()).smallest(target_se, available, num_steps)
    assert size.num_images is not None
    assert size.num_timesteps is not None
    calls = size.num_images * size.num_timesteps + len(chosen) * ledger.num_calls
    rank_zero_info(
        f"target_se = {target_se:g} takes {size.num_timesteps:,} network calls for each of {size.num_images:,} random "
        f"images: with the pilot, 1/{num_steps * available / calls:.0f} of the calls of the exact test."
    )
    return size
