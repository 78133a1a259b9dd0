"""Measurements with errors over seeds and test images, and their paired differences."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Measurement:
    """A quantity for each seed and, for a term of the bound, for each test image.

    All variants have the same seeds and images, so the difference of two measurements is paired: seed and image effects
    cancel. Its error is that over new seeds and new images together. With both, the variance of the mean is the sum of
    the two, less that of their interaction, which both contain (Cameron, Gelbach and Miller 2011, "Robust Inference
    with Multiway Clustering").
    """

    seeds: NDArray[np.float64]  # [S]
    images: NDArray[np.float64] | None = None  # [S, N]

    def __sub__(self, other: "Measurement") -> "Measurement":
        """Returns the paired difference."""
        images = None
        if self.images is not None and other.images is not None and self.images.shape == other.images.shape:
            images = self.images - other.images
        return Measurement(self.seeds - other.seeds, images)

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(self.seeds.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean; NaN if it is unknown."""
        return math.sqrt(self._variance()[0])

    def is_positive(self) -> bool:
        """Returns whether the mean is significantly above 0: a two-sided t-test at 95%."""
        variance, degrees = self._variance()
        return bool(self.mean > stats.t.ppf((1 + LEVEL) / 2, degrees) * math.sqrt(variance))  # False if unknown

    def _variance(self) -> tuple[float, float]:
        """Returns the variance of the mean and its degrees of freedom, by Satterthwaite; NaN if they are unknown."""
        parts = []  # (variance, degrees of freedom) over seeds and over images
        num_seeds = len(self.seeds)
        if num_seeds > 1:
            parts.append((self.seeds.var(ddof=1) / num_seeds, num_seeds - 1))
        interaction = 0.0
        if self.images is not None and self.images.shape[1] > 1:
            num_images = self.images.shape[1]
            by_image = self.images.mean(0)
            parts.append((by_image.var(ddof=1) / num_images, num_images - 1))
            if num_seeds > 1:
                rest = self.images - by_image - self.images.mean(1, keepdims=True) + by_image.mean()
                interaction = (rest**2).sum() / ((num_seeds - 1) * (num_images - 1)) / (num_seeds * num_images)
        if not parts:
            return math.nan, math.nan
        total = sum(variance for variance, _ in parts)
        squares = sum(variance**2 / degrees for variance, degrees in parts)
        variance = max(total - interaction, *(variance for variance, _ in parts), 0.0)
        return float(variance), float(total**2 / squares) if squares > 0 else float(parts[0][1])
