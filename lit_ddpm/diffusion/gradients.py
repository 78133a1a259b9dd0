"""Gradients by timestep: how large and how noisy the gradient of an objective is, and where it points.

The objectives are weights on the x0-MSE, so at a timestep their gradients differ by a factor alone. One measurement of
the gradient of the x0-MSE with respect to the weights of the network therefore describes all of them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import read_arrays, write_arrays
from lit_ddpm._internal.interpolation import interpolate
from lit_ddpm._internal.random import reseed
from lit_ddpm.diffusion.denoiser import Denoiser
from lit_ddpm.diffusion.objective import X0MSE, Objective, weight_on_x0_mse

NUM_TIMESTEPS = 16


@dataclass(frozen=True)
class GradientStatistics:
    """The gradient of the x0-MSE with respect to the weights of a network at timesteps t_1 < ... < t_G.

    Each t_i stands for the timesteps of a cell around it; the cells partition 2..T.
    """

    t: Tensor  # int64 [G]
    edges: Tensor  # int64 [G + 1]: cell i has the timesteps edges[i] to edges[i + 1] - 1
    inner: Tensor  # float64 [G, G]: inner products of the mean gradients, without the bias of their noise
    variance: Tensor  # float64 [G]: the variance of the gradient of one image, summed over the weights
    num_images: Tensor  # int64: the images that were measured at each timestep

    @property
    def signal(self) -> Tensor:
        """The norm of the mean gradient at each t, ``[G]``; 0 where the estimate of its square is negative."""
        return self.inner.diagonal().clamp(min=0).sqrt()

    def second_moment_by_timestep(self) -> Tensor:
        """Returns the mean square of the gradient of one image at t = 2..T, ``[T - 1]``; its log is interpolated."""
        measured = self.signal**2 + self.variance
        t = torch.arange(2, int(self.edges[-1]), dtype=torch.float64)
        return interpolate(t.log(), self.t.double().log(), measured.clamp(min=1e-300).log()).exp()

    def cells(self, weight: Tensor) -> Tensor:
        """Returns the sum of an objective's weight ``[T - 1]``, for t = 2..T, over each cell, divided by T - 1."""
        total = torch.cat([torch.zeros(1, dtype=torch.float64), weight.cumsum(0)])
        return (total[self.edges[1:] - 2] - total[self.edges[:-1] - 2]) / len(weight)

    def cosine(self, weight: Tensor, other: Tensor) -> float:
        """Returns the cosine of the mean gradients of two objectives, by their weights ``[T - 1]``.

        It is NaN if one of the gradients is not significant: less than twice its standard error.
        """
        a, b = self.cells(weight), self.cells(other)
        return float(a @ self.inner @ b / (self._norm(a) * self._norm(b)))

    def cosine_by_timestep(self, weight: Tensor) -> Tensor:
        """Returns the cosine of an objective's mean gradient with that of the x0-MSE at each t, ``[G]``; or NaN."""
        cells = self.cells(weight)
        norms = torch.stack([self._norm(single) for single in torch.eye(len(self.t), dtype=torch.float64)])
        return self.inner @ cells / (norms * self._norm(cells))

    def _norm(self, cells: Tensor) -> Tensor:
        """Returns the norm of a weighted sum of the mean gradients; NaN if it is not significant.

        The standard error is an upper limit, since the noise of different timesteps is from the same images.
        """
        squared = cells @ self.inner @ cells
        error = (cells @ self.variance.sqrt()) ** 2 / self.num_images
        return torch.where(squared > 4 * error, squared, torch.nan).sqrt()

    def optimal_density(self, weight: Tensor) -> Tensor:
        """Returns the probability of each t = 2..T for which the gradient of an objective has the least variance.

        It is proportional to the root mean square of the gradient of one image.
        """
        rms = weight * self.second_moment_by_timestep().sqrt()
        return rms / rms.sum()

    def saving(self, weight: Tensor) -> float:
        """Returns how many times more images uniform t needs than the optimal density, for the same variance.

        It is infinite if the optimal density has no variance.
        """
        rms = weight * self.second_moment_by_timestep().sqrt()
        signal = self.square_of_mean(weight)
        optimal = float(rms.mean() ** 2) - signal
        return (float((rms**2).mean()) - signal) / optimal if optimal > 0 else math.inf

    def noise(self, weight: Tensor) -> float:
        """Returns the standard deviation of an objective's gradient for one image at a uniform t."""
        square = (weight**2 * self.second_moment_by_timestep()).mean()
        return math.sqrt(max(float(square) - self.square_of_mean(weight), 0.0))

    def square_of_mean(self, weight: Tensor) -> float:
        """Returns the squared norm of an objective's mean gradient; 0 where its estimate is negative."""
        cells = self.cells(weight)
        return max(float(cells @ self.inner @ cells), 0.0)

    def save(self, path: Path) -> None:
        """Writes the statistics as ``.npz``."""
        write_arrays(path, {name: value.numpy() for name, value in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> "GradientStatistics":
        """Reads a file of `save`."""
        return cls(**{name: torch.from_numpy(value) for name, value in read_arrays(path).items()})


def timestep_cells(num_steps: int, count: int = NUM_TIMESTEPS) -> tuple[Tensor, Tensor]:
    """Returns ``(t [G], edges [G + 1])``: at most `count` timesteps in 2..T, and the cells around them.

    Half are evenly spaced and half geometrically, since the weights of some schedules change most at small t.
    """
    even = torch.linspace(2, num_steps, count - count // 2 + 1, dtype=torch.float64)[1:]
    geometric = torch.logspace(1, math.log2(num_steps), count // 2 + 1, base=2, dtype=torch.float64)[:-1]
    t = torch.unique_consecutive(torch.cat([even, geometric]).round().long().sort().values)
    middle = (t[1:].double() * t[:-1]).sqrt().ceil().long().clamp(min=3)
    return t, torch.cat([torch.tensor([2]), middle, torch.tensor([num_steps + 1])])


def gradient_statistics(
    denoiser: Denoiser,
    batches: Iterable[tuple[Tensor, dict[str, Any]]],
    num_timesteps: int = NUM_TIMESTEPS,
    seed: int = 0,
    num_batches: int | None = None,
) -> GradientStatistics:
    """Measures the gradient of the x0-MSE in training mode, with a backward pass for each batch and timestep.

    Half of the batches estimate each factor of an inner product, so the noise does not bias it.

    Args:
        denoiser: The model.
        batches: Images ``[B, ...]`` with keyword arguments of the network. Batches of another size than the first are
            skipped, and at least two must remain.
        num_timesteps: The number of timesteps; small T have fewer.
        seed: The seed of the noise and of dropout.
        num_batches: The number of batches to measure; all if None.

    Raises:
        ValueError: If there are fewer than two batches of one size.
    """
    weights = [p for p in denoiser.parameters() if p.requires_grad]
    t, edges = timestep_cells(denoiser.schedule.num_steps, num_timesteps)
    device = weights[0].device
    sums = torch.zeros(2, len(t), sum(w.numel() for w in weights), device=device)
    squares = torch.zeros(len(t), dtype=torch.float64)
    counts, batch_size, training = [0, 0], 0, denoiser.training
    denoiser.train()
    for x_0, cond in batches:
        batch_size = batch_size or len(x_0)
        if len(x_0) != batch_size:
            continue
        number = sum(counts)
        half = number % 2
        counts[half] += 1
        for i, step in enumerate(t.tolist()):
            reseed(device, "gradients", seed, number, step)
            pred = denoiser.predict(x_0, torch.full((batch_size,), step), torch.randn_like(x_0), **cond)
            loss = X0MSE()(denoiser, pred).mean()
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            parts = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
            gradient = torch.cat([part.flatten().float() for part in parts])
            sums[half, i] += gradient
            squares[i] += float(gradient.square().sum())
        if number + 1 == num_batches:
            break
    denoiser.train(training)
    total = sum(counts)
    if total < 2:
        raise InputError(f"gradients need at least two batches of images, not {total}: set a smaller batch_size.")
    products = (sums[0] @ sums[1].T).cpu().double()
    norms = torch.linalg.vecdot(sums, sums).cpu().double().sum(0)
    inner = products / (counts[0] * counts[1])
    mean_square = (norms + 2 * products.diagonal()) / total**2
    variance = (squares - total * mean_square) / (total - 1) * batch_size
    num_images = torch.tensor(total * batch_size)
    return GradientStatistics(t, edges, (inner + inner.T) / 2, variance.clamp(min=0), num_images)


def gradient_table(found: GradientStatistics, denoiser: Denoiser, objective: Objective) -> str:
    """Returns the statistics of the gradient of an objective by timestep as a table for a terminal."""
    weight = weight_on_x0_mse(objective, denoiser)
    row = found.t - 2
    signal, noise = found.signal, found.variance.sqrt()
    density = found.optimal_density(weight) * len(weight)
    columns = {
        "t": found.t,
        "log SNR": denoiser.schedule.log_snr(found.t),
        "gradient": weight[row] * signal,
        "noise": weight[row] * noise,
        "ratio": signal / noise,
        "density": density[row],
    }
    lines = ["".join(f"{name:>11}" for name in columns)]
    for t, *values in zip(*(column.tolist() for column in columns.values()), strict=True):
        lines.append(f"{t:>11}" + "".join(f"{value:>11.4g}" for value in values))
    return "\n".join(
        [
            *lines,
            "gradient: the norm of the mean gradient at t; noise: its standard deviation for one image;",
            "ratio: gradient / noise; density: the optimal density of t, where 1 is uniform",
            f"uniform t needs {found.saving(weight):.2f} times as many images as the optimal density",
        ]
    )
