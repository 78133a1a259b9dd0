"""How many images and network calls a bound needs for a given standard error."""

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.likelihood.bound import Bound

PILOT_IMAGES = 64
PILOT_CALLS = 16
LEAST_CALLS = 3  # two KL terms: a single one has no strata, and would vary more than the pilot predicts
CONFIDENCE = 0.8  # that the chosen numbers meet the target, which covers the error of the pilot


class Size(NamedTuple):
    """The part of an exact test that is measured."""

    num_images: int
    num_timesteps: int  # network calls for each image


def random_order(count: int, seed: int = 0) -> Tensor:
    """Returns the indices of `count` test images in the order in which images are chosen, int64 ``[count]``."""
    return torch.randperm(count, generator=keyed_generator("test images", seed))


def smallest_test(pilot: Bound, target_se: float, num_available: int) -> Size:
    """Returns the numbers of images and timesteps with the fewest network calls for a standard error of the total.

    Args:
        pilot: An estimate of the bound of a few random images, such as the first `PILOT_IMAGES` of `random_order`, with
            `PILOT_CALLS` network calls each.
        target_se: The standard error over images and noise, in the unit of the report.
        num_available: The number of test images.

    Raises:
        ValueError: If all images and timesteps are not enough.
    """
    if not target_se > 0:
        raise InputError(f"target_se = {target_se} must be positive.")
    report = pilot.report()
    if report.num_images < 2 or num_available < 1:
        raise InputError(f"a pilot of {report.num_images} and {num_available} available images: 2 and 1 are needed.")
    noise = report.num_images * report.terms["diffusion"].se_noise ** 2
    images = max(report.num_images * report.terms["total"].se_images ** 2 - noise, 0.0)
    terms = report.num_calls - 1
    return smallest_size(images, noise * terms, report.num_images, target_se, num_available, pilot.num_steps)


def smallest_size(
    var_images: float, var_noise: float, num_pilot_images: int, target_se: float, num_available: int, num_steps: int
) -> Size:
    """Returns the size of `smallest_test` for the variances that a pilot of `num_pilot_images` found.

    `var_images` is the variance of the bound over the images, and `var_noise` that of one of the K - 1 random KL terms
    of an image. The mean over n images has the variance ``(var_images + var_noise / (K - 1)) / n`` and the cost n K.
    The variances of the pilot are increased to their upper limits at `CONFIDENCE`.
    """
    degrees = num_pilot_images - 1
    allowed = target_se**2 * float(stats.chi2.ppf(1 - CONFIDENCE, degrees)) / degrees

    def images_for(calls: int) -> int:
        return math.ceil((var_images + var_noise / (calls - 1)) / allowed)

    numbers = range(min(LEAST_CALLS, num_steps), num_steps + 1)
    feasible = [calls for calls in numbers if images_for(calls) <= num_available]
    if not feasible:
        least = math.sqrt((var_images + var_noise / (num_steps - 1)) / num_available)
        raise InputError(
            f"target_se = {target_se:g} is unattainable: all {num_available:,} images of the test split and all "
            f"{num_steps:,} timesteps give about {least:.2g}."
        )
    calls = min(feasible, key=lambda calls: calls * max(images_for(calls), 2))
    return Size(max(images_for(calls), 2), calls)
