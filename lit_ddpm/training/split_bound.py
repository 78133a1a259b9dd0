"""The bound of the images of a split, batch by batch on any number of ranks."""

from collections.abc import Sized
from functools import partial
from typing import Any, Literal

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lit_ddpm.data.protocols import HasHistogram
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser
from lit_ddpm.diffusion.image_ledger import Column, ImageLedger
from lit_ddpm.diffusion.ledger import Ledger, histogram_nats
from lit_ddpm.diffusion.network import is_per_image
from lit_ddpm.diffusion.weighting import kl_weight
from lit_ddpm.likelihood.bound import variational_bound
from lit_ddpm.likelihood.flow import FLOW_STEPS, exact_likelihood
from lit_ddpm.likelihood.report import LIKELIHOOD, TERMS, Report

Split = Literal["val", "test"]

EVALUATION_SEED = 0
"""The seed of the bound's noise. It does not depend on the training seed, so all models are measured with one noise."""


def images_of(trainer: Trainer, split: Split) -> int | None:
    """Returns the number of images of a split, or None for several loaders or a dataset without a length."""
    loader = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
    dataset = loader.dataset if isinstance(loader, DataLoader) else None
    return len(dataset) if isinstance(dataset, Sized) else None


class SplitBound:
    """Accumulates the bound over this rank's batches of a split, from `num_calls` network calls for each image.

    In testing, the histogram of a discrete dataset is measured as well, as the baseline, and, if `exact`, the exact
    likelihood. `second_moment` is `Bound.second_moment` of an earlier evaluation, which reduces the variance of an
    estimate. `chosen` are the indices of the images to measure, all if None.
    """

    def __init__(
        self,
        trainer: Trainer,
        denoiser: Denoiser,
        decoder: Decoder,
        split: Split,
        num_calls: int,
        second_moment: Tensor | None,
        exact: bool = False,
        chosen: Tensor | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.decoder = decoder
        self.num_images = images_of(trainer, split)
        self.num_chosen = self.num_images if chosen is None else len(chosen)
        # The histogram does not know the condition, so it is not a baseline of a model that does.
        has_baseline = split == "test" and decoder.levels is not None and denoiser.cond_channels is None
        data = getattr(trainer, "datamodule", None) if has_baseline else None
        self._histogram = data.train_histogram() if isinstance(data, HasHistogram) else None
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._moment = second_moment
        self._exact = exact
        self.ledger = Ledger(denoiser.schedule.num_steps, num_calls, decoder.levels is not None, exact)
        self._images = ImageLedger() if split == "test" else None
        self._chosen = None if chosen is None else set(chosen.tolist())
        self._waiting: list[tuple[Tensor, dict[str, Any], Tensor]] = []
        self._num_seen = 0
        self._given: tuple[str, ...] = ()

    def update(self, x_0: Tensor, cond: dict[str, Any]) -> None:
        """Adds the images of a batch, ``[B, C, ...]``, with the keyword arguments of the network."""
        # Distributed samplers deal images to ranks in turn and repeat the first ones to make the shares equal. The
        # index of an image follows from its place in that order; an index past the end is a repetition.
        index = self._rank + self._world_size * (self._num_seen + torch.arange(len(x_0)))
        self._num_seen += (batch_size := len(x_0))
        self._given = tuple(cond)
        keep = index < self.num_images if self.num_images is not None else torch.ones_like(index, dtype=torch.bool)
        if self._chosen is not None:
            keep &= torch.tensor([int(i) in self._chosen for i in index])
        if not bool(keep.all()):
            cond = {k: v[keep] if is_per_image(v, len(x_0)) else v for k, v in cond.items()}
            x_0, index = x_0[keep], index[keep]
        if len(x_0) > 0:
            self._waiting.append((x_0, cond, index))
        if self._chosen is None or sum(len(index) for _, _, index in self._waiting) >= batch_size:
            self._measure()

    def _measure(self) -> None:
        """Measures the images that wait; a random part of a split fills batches from several."""
        if not self._waiting:
            return
        images, conds, indices = zip(*self._waiting, strict=True)
        self._waiting.clear()
        x_0, index = torch.cat(images), torch.cat(indices)
        cond = {
            name: torch.cat([c[name] for c in conds]) if is_per_image(value, len(images[0])) else value
            for name, value in conds[0].items()
        }
        bound = variational_bound(
            self.denoiser, x_0, self.decoder, self.ledger.num_calls, EVALUATION_SEED, index, self._moment, **cond
        )
        columns = {} if self._histogram is None else {"baseline": histogram_nats(self._histogram, x_0)}
        if self._exact:
            columns |= self._likelihood(x_0, index, cond, bound.total)
        self.ledger.update(bound, **columns)
        if self._images is not None:
            self._images.update(index, {name: getattr(bound, name) for name in TERMS} | columns)

    def _likelihood(self, x_0: Tensor, index: Tensor, cond: dict[str, Any], bound: Tensor) -> dict[str, Tensor]:
        """Returns the columns of the exact likelihood."""
        full, half = (
            exact_likelihood(self.denoiser, x_0, self.decoder, steps, EVALUATION_SEED, index, **cond)
            for steps in (FLOW_STEPS, FLOW_STEPS // 2)
        )
        terms = full.flow, full.dequantization, full.reconstruction, full.total
        return dict(zip(LIKELIHOOD, (*terms, bound - full.total, full.total - half.total), strict=True))

    def report(self, trainer: Trainer) -> Report:
        """Returns the report over all ranks, whose sums the ledger then has; called once, at the end."""
        self._measure()
        if self._world_size > 1:
            self.ledger.reduce(lambda sums: _over_ranks(trainer, sums, "sum"))
        schedule = self.denoiser.schedule
        weight = kl_weight(schedule, torch.arange(1, schedule.num_steps + 1))
        available = None if self._chosen is None else self.num_images
        return self.ledger.report(self._given, weight, available)

    def images(self, trainer: Trainer) -> dict[str, Column] | None:
        """Returns the terms of each image over all ranks, in the unit of the report; None in validation."""
        if self._images is None:
            return None
        names = (*TERMS, "likelihood") if self._exact else TERMS
        reduce = partial(_over_ranks, trainer) if self._world_size > 1 else None
        columns = self._images.gather(reduce, names)
        return {name: values if name == "index" else values * self.ledger.scale for name, values in columns.items()}

    def measure_variance(self) -> None:
        """Sets `Denoiser.x0_mse` to that of the images; at t = 1 to the variance that a decoder of pixels prefers.

        The rare errors of whole levels dominate the x0-MSE there, and a Gaussian that holds them blurs all pixels.
        """
        x0_mse = self.ledger.x0_mse()
        if self.decoder.levels is not None:
            x0_mse[0] = self.denoiser.schedule.beta(1) * self.ledger.decoder_scale()
        self.denoiser.x0_mse = x0_mse


def _over_ranks(trainer: Trainer, values: Tensor, operation: str) -> Tensor:
    """Returns the sum or maximum of a tensor over the ranks, on their device."""
    strategy = trainer.strategy
    reduced: Tensor = strategy.reduce(values.to(strategy.root_device), reduce_op=operation)
    return reduced
