"""One pass over a split: the bound of each of its images once, on any number of processes."""

from typing import Any, Literal

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lit_ddpm.diffusion.bound import variational_bound
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser
from lit_ddpm.diffusion.ledger import Ledger, Report, histogram_nats

Split = Literal["val", "test"]

EVALUATION_SEED = 0
"""The bound's noise is the same whatever seed trained a model, so that models meet the same questions."""


class BoundEvaluation:
    """Adds up the bound of a split's batches, as this process gets them.

    Args:
        trainer: The Trainer that visits the split.
        denoiser: The model.
        decoder: The likelihood at t = 1.
        split: Which split it is.
        num_calls: Network calls an image; all T give the full bound.
        second_moment: What an earlier evaluation found, see `variational_bound`; an estimate is better for it.
        histogram: How often each pixel has each level in the training images, ``[levels, C, H, W]``, for a baseline.
    """

    def __init__(
        self,
        trainer: Trainer,
        denoiser: Denoiser,
        decoder: Decoder,
        split: Split,
        num_calls: int,
        second_moment: Tensor | None = None,
        histogram: Tensor | None = None,
    ) -> None:
        self.trainer = trainer
        self.denoiser = denoiser
        self.decoder = decoder
        self.num_images = _num_images(trainer, split)
        self.histogram = histogram
        self._known_second_moment = second_moment
        self._ledger = Ledger(denoiser.schedule.num_steps, num_calls, discrete=decoder.levels is not None)
        self._num_seen = 0

    def update(self, x_0: Tensor, cond: dict[str, Any]) -> None:
        """Adds the images of a batch, ``[B, C, H, W]``, with the keyword arguments of the network."""
        # Distributed samplers deal images to ranks in turn and repeat the first ones to make the shares equal. An
        # image's number follows from its place in that order, and a number past the end is a repetition.
        index = self.trainer.global_rank + self.trainer.world_size * (self._num_seen + torch.arange(len(x_0)))
        self._num_seen += len(x_0)
        if self.num_images is not None and bool((index >= self.num_images).any()):
            keep = (index < self.num_images).to(x_0.device)
            cond = {k: v[keep] if isinstance(v, Tensor) and len(v) == len(keep) else v for k, v in cond.items()}
            x_0, index = x_0[keep], index[index < self.num_images]
        if len(x_0) == 0:
            return
        bound = variational_bound(
            self.denoiser,
            x_0,
            self.decoder,
            self._ledger.num_calls,
            seed=EVALUATION_SEED,
            index=index,
            second_moment=self._known_second_moment,
            **cond,
        )
        self._ledger.update(bound, None if self.histogram is None else histogram_nats(self.histogram, x_0))

    def report(self) -> Report:
        """What the ledger of all processes says; called once, at the end."""
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1:
            device = strategy.root_device
            self._ledger.reduce(lambda sums: strategy.reduce(sums.to(device), reduce_op="sum"))
        return self._ledger.report()

    def second_moment(self) -> Tensor:
        """What `report` found about the size of the KL terms, for the next evaluation, ``[T - 1]``."""
        return self._ledger.second_moment()


def _num_images(trainer: Trainer, split: Split) -> int | None:
    """The size of a split's data set, if it is one sized data set."""
    loader = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
    return len(loader.dataset) if isinstance(loader, DataLoader) and hasattr(loader.dataset, "__len__") else None
