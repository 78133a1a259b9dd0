"""The variational bound of images: rows by image and sums by timestep, which add up over batches and ranks."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import write_arrays
from lit_ddpm.diffusion.variance import smooth_x0_mse
from lit_ddpm.likelihood.flow import Likelihood
from lit_ddpm.likelihood.report import LIKELIHOOD, TERMS, Report

ROWS = ("index", "prior", "diffusion", "reconstruction")
SUMS = (
    *("differences", "squared_differences", "diffusion_by_t", "squared_diffusion_by_t", "reconstruction_by_scale"),
    *("visits", "kl", "squared_error"),
)
SHARED = ("dims", "num_calls", "num_steps", "discrete", "conditioned_on")
"""The names of the rows by image, of the sums over images and calls, and of what is the same for all images."""

DECODER_SCALES = 2 ** (torch.arange(-12, 13, dtype=torch.float64) / 2)
"""The factors of beta_1 among which the best variance of the decoder is chosen."""


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound of a batch, of a dataset or of all ranks, float64 on the CPU; ``sum(bounds)`` is that of all images.

    Terms are in nats, summed over the dimensions of an image.
    """

    # Rows by image.
    index: Tensor  # int64 [N], in the dataset
    prior: Tensor  # [N], KL(q(x_T|x_0) || N(0, I)), exact
    diffusion: Tensor  # [N], the sum of the KL terms over t = 2..T, or its unbiased estimate
    reconstruction: Tensor  # [N], -log p(x_0|x_1) of the decoder

    # Sums over the images. The differences are those of the terms of `diffusion` at neighboring timesteps.
    differences: Tensor  # [num_calls // 2], none for two calls
    squared_differences: Tensor  # scalar, summed over the pairs
    diffusion_by_t: Tensor  # [T - 1], each KL term, t = 2..T, or its unbiased estimate; they add up to `diffusion`
    squared_diffusion_by_t: Tensor  # [T - 1], the square of each KL term, or its unbiased estimate
    reconstruction_by_scale: Tensor  # for a decoder of variance beta_1 times each of the `DECODER_SCALES`

    # Sums over the network calls at each timestep.
    visits: Tensor  # [T], the number of calls at t = 1..T
    kl: Tensor  # [T - 1], the KL, t = 2..T
    squared_error: Tensor  # [T], |x0_hat - x_0|^2 per dimension, t = 1..T

    # The same for all images.
    dims: int  # dimensions of an image
    num_calls: int  # network calls for each image
    discrete: bool  # whether the decoder gives probabilities, so that there are bits
    kl_weight: Tensor  # [T], of the posterior variance
    conditioned_on: tuple[str, ...] = ()  # the conditions of the model, such as "label": it is that of p(x_0|label)

    columns: dict[str, Tensor] = field(default_factory=dict)  # further rows [N], see `with_columns`

    @property
    def total(self) -> Tensor:
        """The bound, ``[N]``."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def profile(self) -> Tensor:
        """The mean over the images of each KL term, ``[T - 1]`` for t = 2..T; it sums to the mean of `diffusion`."""
        return self.diffusion_by_t / len(self.index)

    @property
    def second_moment(self) -> Tensor:
        """The mean square of each KL term, ``[T - 1]`` for t = 2..T, for `variational_bound`."""
        return self.squared_diffusion_by_t / len(self.index)

    @property
    def num_steps(self) -> int:
        """The schedule's T."""
        return len(self.visits)

    @property
    def scale(self) -> float:
        """The factor from nats to bits per dimension, or to nats per dimension for real values."""
        return 1 / (self.dims * (math.log(2) if self.discrete else 1))

    def __add__(self, other: "Bound") -> "Bound":
        """Returns the bound of the images of both.

        Raises:
            ValueError: If they differ in their dimensions, network calls, schedule, unit, conditions or columns.
        """
        if not isinstance(other, Bound):
            return NotImplemented
        for name in SHARED:
            if getattr(self, name) != getattr(other, name):
                values = f"{getattr(self, name)} and {getattr(other, name)}"
                raise InputError(f"bounds with {name} = {values} cannot be added.")
        if self.columns.keys() != other.columns.keys() or not torch.equal(self.kl_weight, other.kl_weight):
            raise InputError("bounds of other schedules or with other columns cannot be added.")
        rows: dict[str, Any] = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in ROWS}
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in SUMS}
        columns = {name: torch.cat([values, other.columns[name]]) for name, values in self.columns.items()}
        return replace(self, **rows, **sums, columns=columns)

    def __radd__(self, other: int) -> "Bound":
        """Returns the bound itself for 0, the start of ``sum``."""
        return self if other == 0 else NotImplemented

    def with_columns(self, **columns: Tensor) -> "Bound":
        """Returns the bound with further values of each image, ``[N]`` in nats.

        ``baseline`` is the code length of the images under another model.

        Raises:
            ValueError: If there is not one value for each image, or a name is that of a term.
        """
        for name, values in columns.items():
            if name in (*ROWS, "total") or values.shape != self.index.shape:
                raise InputError(f"the column {name} must be {list(self.index.shape)} and not named like a term.")
        return replace(self, columns=self.columns | {name: x.cpu().double() for name, x in columns.items()})

    def with_likelihood(self, exact: Likelihood, coarse: Likelihood | None = None) -> "Bound":
        """Returns the bound with the exact likelihood of the images, and what one of fewer steps of the solver adds."""
        if exact.total.shape != self.prior.shape:
            raise InputError(f"the likelihood is of {len(exact.total)} images, and the bound of {len(self.prior)}.")
        error = torch.full_like(self.prior, torch.nan) if coarse is None else coarse.total - exact.total
        terms = exact.flow, exact.dequantization, exact.reconstruction, exact.total
        return self.with_columns(**dict(zip(LIKELIHOOD, (*terms, self.total - exact.total, error), strict=True)))

    def x0_mse(self) -> Tensor:
        """Returns an estimate of the x0-MSE at t = 1..T, ``[T]``; see `smooth_x0_mse`."""
        return smooth_x0_mse(self.squared_error, self.visits)

    def decoder_scale(self) -> float:
        """Returns the best of the `DECODER_SCALES` for the images."""
        return float(DECODER_SCALES[self.reconstruction_by_scale.argmin()])

    def noise_variance(self) -> float:
        """Returns the variance of `diffusion` of one image over its noise and timesteps, see `noise_variance`."""
        count = len(self.index)
        return noise_variance(self.differences / count, self.squared_differences / count, count)

    def report(self, num_available: int | None = None) -> Report:
        """Returns the report; the images are a random part of `num_available`, if that is not None."""
        return Report.of(self, num_available)

    def save(self, path: Path) -> None:
        """Writes the rows by image as ``.npz``, in the order of the index and in the unit of the report."""
        order = self.index.argsort()
        rows = {name: getattr(self, name) for name in TERMS} | self.columns
        arrays = {name: (values[order] * self.scale).numpy() for name, values in rows.items()}
        write_arrays(path, {"index": self.index[order].numpy(), **arrays})


def noise_variance(differences: Tensor, squared_differences: Tensor, num_images: int) -> float:
    """Returns the variance of `Bound.diffusion` of one image over its noise and timesteps, in squared nats.

    The arguments are averages over the images.

    Terms at neighboring timesteps have independent noise, so the variance of their difference over the images is the
    sum of their variances; it is larger where the slope of the terms differs between images (collapsed strata: Cochran
    1977, section 5A.12). The result is NaN for fewer than two images or two terms.
    """
    if num_images < 2 or not len(differences):
        return math.nan
    variance = float(squared_differences - (differences**2).sum())
    return max(variance, 0.0) * num_images / (num_images - 1)


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Converts nats for an image of `dims` dimensions to bits per dimension."""
    return nats / (dims * math.log(2))


def histogram_nats(histogram: Tensor, x_0: Tensor) -> Tensor:
    """Returns the code length of images under an independent histogram for each pixel, in nats ``[B]`` on the CPU.

    The `histogram` has counts ``[levels, C, H, W]``, to which one is added; `x_0` is ``[B, C, H, W]`` on those levels.
    """
    counts = histogram.cpu().double() + 1
    level = ((x_0.cpu() + 1) / 2 * (len(counts) - 1)).round().long()
    return -(counts / counts.sum(0)).log().gather(0, level).flatten(1).sum(1)
