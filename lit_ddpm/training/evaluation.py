"""Measurements of a `DDPM`: both forms of the KL in training, the bound of a split in validation and testing."""

from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_ddpm.data.protocols import HasHistogram
from lit_ddpm.diffusion.bound import variational_bound
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser, Prediction
from lit_ddpm.diffusion.image_ledger import Column, ImageLedger, save_images
from lit_ddpm.diffusion.ledger import LIKELIHOOD, TERMS, Ledger, Report, histogram_nats
from lit_ddpm.diffusion.likelihood import FLOW_STEPS, check_flow, exact_likelihood
from lit_ddpm.diffusion.objective import kl_forms
from lit_ddpm.diffusion.weighting import kl_weight
from lit_ddpm.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

Split = Literal["val", "test"]

EVALUATION_SEED = 0
"""The seed of the bound's noise. It does not depend on the training seed, so all models are measured with one noise."""


@dataclass(frozen=True)
class KLMetrics:
    """Both forms of the KL of the samples of a training batch with t >= 2.

    In continuous time it is the KL of a step of length 1 that ends at t.
    """

    t: Tensor  # their timesteps, int64 [N] on the CPU; those of continuous time are rounded
    kl: Tensor  # the full form, nats per dimension, [N]
    values: dict[str, Tensor]  # means for the logs, and the largest relative difference of the forms, train/form_gap


@torch.no_grad()
def kl_metrics(denoiser: Denoiser, pred: Prediction, weight: Tensor) -> KLMetrics | None:
    """Computes both forms of the KL from a prediction and the weights of its timesteps; None if all have t = 1."""
    rows = (pred.t >= 2).nonzero().flatten()
    if len(rows) == 0:
        return None
    kl, kl_from_x0_mse, x0_mse = kl_forms(denoiser, pred.select(rows))
    weight = weight[rows].to(kl)
    values = {"train/kl": (weight * kl).mean(), "train/x0_mse": (weight * x0_mse).mean()}
    if denoiser.variance != "learned":  # the KL of a learned variance is not a weighted x0-MSE
        values["train/kl_from_x0_mse"] = (weight * kl_from_x0_mse).mean()
        values["train/form_gap"] = ((kl - kl_from_x0_mse).abs() / kl.clamp(min=1e-30)).max()
    return KLMetrics(pred.t[rows].round().long(), kl, values)


class SplitBound:
    """Accumulates the bound over this rank's batches of a split, from `num_calls` network calls for each image.

    In testing, the histogram of a discrete dataset is measured as well, as the baseline, and, if `exact`, the exact
    likelihood. `second_moment` is `Bound.second_moment` of an earlier evaluation, which reduces the variance of an
    estimate.
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
    ) -> None:
        self.denoiser = denoiser
        self.decoder = decoder
        loader = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
        dataset = loader.dataset if isinstance(loader, DataLoader) else None  # None for several loaders
        self.num_images = len(dataset) if isinstance(dataset, Sized) else None
        # The histogram does not know the condition, so it is not a baseline of a model that does.
        has_baseline = split == "test" and decoder.levels is not None and denoiser.cond_channels is None
        data = getattr(trainer, "datamodule", None) if has_baseline else None
        self._histogram = data.train_histogram() if isinstance(data, HasHistogram) else None
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._moment = second_moment
        self._exact = exact
        self.ledger = Ledger(denoiser.schedule.num_steps, num_calls, decoder.levels is not None, exact)
        self._images = ImageLedger() if split == "test" else None
        self._num_seen = 0
        self._given: tuple[str, ...] = ()

    def update(self, x_0: Tensor, cond: dict[str, Any]) -> None:
        """Adds the images of a batch, ``[B, C, ...]``, with the keyword arguments of the network."""
        # Distributed samplers deal images to ranks in turn and repeat the first ones to make the shares equal. The
        # index of an image follows from its place in that order; an index past the end is a repetition.
        index = self._rank + self._world_size * (self._num_seen + torch.arange(len(x_0)))
        self._num_seen += len(x_0)
        self._given = tuple(cond)
        if self.num_images is not None and bool((index >= self.num_images).any()):
            keep = index < self.num_images
            cond = {k: v[keep] if isinstance(v, Tensor) and len(v) == len(keep) else v for k, v in cond.items()}
            x_0, index = x_0[keep], index[keep]
        if len(x_0) == 0:
            return
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
        if self._world_size > 1:
            strategy = trainer.strategy
            self.ledger.reduce(lambda sums: strategy.reduce(sums.to(strategy.root_device), reduce_op="sum"))
        schedule = self.denoiser.schedule
        weight = kl_weight(schedule, torch.arange(1, schedule.num_steps + 1))
        return self.ledger.report(self._given, weight)

    def images(self, trainer: Trainer) -> dict[str, Column] | None:
        """Returns the terms of each image over all ranks, in the unit of the report; None in validation."""
        if self._images is None:
            return None

        def reduce(values: Tensor, operation: str) -> Tensor:
            strategy = trainer.strategy
            reduced: Tensor = strategy.reduce(values.to(strategy.root_device), reduce_op=operation)
            return reduced

        names = (*TERMS, "likelihood") if self._exact else TERMS
        columns = self._images.gather(reduce if self._world_size > 1 else None, names)
        return {name: values if name == "index" else values * self.ledger.scale for name, values in columns.items()}

    def measure_variance(self) -> None:
        """Sets `Denoiser.x0_mse` to that of the images; at t = 1 to the variance that a decoder of pixels prefers.

        The rare errors of whole levels dominate the x0-MSE there, and a Gaussian that holds them blurs all pixels.
        """
        x0_mse = self.ledger.x0_mse()
        if self.decoder.levels is not None:
            x0_mse[0] = self.denoiser.schedule.beta(1) * self.ledger.decoder_scale()
        self.denoiser.x0_mse = x0_mse


class BoundEvaluator:
    """Measures the bound of a validation or test split: `begin`, then `update` for each batch, then `finish`.

    Each validation of a fit passes its second moments to the next, which then needs fewer calls for the same precision.
    A checkpoint contains those that its own validation began with, so that validating it again gives the same numbers,
    and those that it found, so that a resumed fit continues with the same numbers. A validation of a fit also measures
    `Denoiser.x0_mse`.

    Args:
        num_val_timesteps: Network calls for each image in validation; all T if None. Testing always uses all T.
    """

    def __init__(self, num_val_timesteps: int | None) -> None:
        if num_val_timesteps is not None and num_val_timesteps < 2:
            raise ValueError(f"num_val_timesteps = {num_val_timesteps} must be at least 2, or None for all T.")
        self.num_val_timesteps = num_val_timesteps
        self.exact = False  # whether a test measures the exact likelihood, too
        self.last_report: Report | None = None  # of the last `finish`
        self.last_images: dict[str, Column] | None = None  # the terms of each image, if it was a test
        self._initial_moment: Tensor | None = None  # of the current or last validation
        self._found_moment: Tensor | None = None  # in it
        self._bound: SplitBound | None = None

    def reset(self) -> None:
        """Discards the second moments of earlier fits."""
        self._initial_moment = self._found_moment = None

    def new_bound(self, trainer: Trainer, denoiser: Denoiser, decoder: Decoder, split: Split) -> SplitBound:
        """Returns an empty accumulator for a split, with the settings of this evaluator."""
        num_steps = denoiser.schedule.num_steps
        num_calls = num_steps if split == "test" else min(self.num_val_timesteps or num_steps, num_steps)
        exact = self.exact and split == "test"
        return SplitBound(trainer, denoiser, decoder, split, num_calls, self._initial_moment, exact)

    def begin(self, trainer: Trainer, denoiser: Denoiser, decoder: Decoder, split: Split) -> None:
        """Starts a pass over a split."""
        if self.exact and split == "test":
            check_flow(denoiser)
        if trainer.state.fn == "fit":
            self._initial_moment = self._found_moment
        self._bound = self.new_bound(trainer, denoiser, decoder, split)
        if split == "test" and (num_images := self._bound.num_images) is not None:
            num_calls = denoiser.schedule.num_steps
            rank_zero_info(f"The exact bound takes {num_calls:,} network calls for each of {num_images:,} images.")
            if self.exact:
                rank_zero_info(
                    f"The exact likelihood takes {6 * FLOW_STEPS} more with gradients: {FLOW_STEPS} steps of the "
                    f"probability-flow ODE, and {FLOW_STEPS // 2} as a check."
                )

    def update(self, x_0: Tensor, cond: dict[str, Any]) -> None:
        """Adds the images of a batch, ``[B, C, H, W]``, with the keyword arguments of the network."""
        if self._bound is None:
            raise RuntimeError(
                "the evaluation was not started: configure_callbacks of a DDPM must return the callbacks of "
                "super().configure_callbacks() too."
            )
        self._bound.update(x_0, cond)

    def finish(self, trainer: Trainer) -> Report:
        """Returns the report of the split over all ranks."""
        bound = self._bound
        assert bound is not None
        self.last_report, self._bound = bound.report(trainer), None
        self.last_images = bound.images(trainer)
        if trainer.validating:  # neither testing nor sanity checking
            self._found_moment = bound.ledger.second_moment()
            if trainer.state.fn == "fit":
                bound.measure_variance()
        return self.last_report

    def state_dict(self) -> dict[str, Tensor | None]:
        """Returns the second moments for a checkpoint."""
        return {"initial_moment": self._initial_moment, "found_moment": self._found_moment}

    def load_state_dict(self, state_dict: dict[str, Tensor | None], num_steps: int) -> None:
        """Restores the second moments, unless they belong to a schedule of another length."""
        moments = state_dict["initial_moment"], state_dict["found_moment"]
        fit = all(moment is None or len(moment) == num_steps - 1 for moment in moments)
        self._initial_moment, self._found_moment = moments if fit else (None, None)


class LogBound(Callback):
    """Drives the evaluator of a `DDPM` through validation and testing, logs the bound and prints the ledger."""

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "val")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = self._finish(trainer, pl_module, "test")
        run, images = RunDirectory.of_trainer(trainer), cast("DDPM", pl_module).evaluator.last_images
        assert images is not None
        if trainer.is_global_zero:
            report.save(run.ledger)
            save_images(run.image_ledger, images)
            print(f"\n{report.table()}\nwritten to {run.ledger}, and each image's to {run.image_ledger.name}")

    def _begin(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> None:
        module = cast("DDPM", pl_module)
        assert module.decoder is not None
        module.evaluator.begin(trainer, module.denoiser, module.decoder, split)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> Report:
        module = cast("DDPM", pl_module)
        report = module.evaluator.finish(trainer)
        values = report.metrics(split)
        if trainer.state.fn != "fit":
            values["step"] = max(module.trained_steps - 1, 0)  # Lightning's name of the x-axis, which counts from 0
        module.log_dict(values)
        return report
