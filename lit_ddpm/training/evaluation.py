"""The bound of a split in validation and testing."""

from typing import TYPE_CHECKING, Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.files import write_arrays
from lit_ddpm.diffusion.image_ledger import Column
from lit_ddpm.likelihood.flow import FLOW_STEPS, check_flow
from lit_ddpm.likelihood.report import Report
from lit_ddpm.likelihood.size import EvaluationSize, smallest_test, tested_images
from lit_ddpm.training.run_directory import RunDirectory
from lit_ddpm.training.split_bound import EVALUATION_SEED, Split, SplitBound

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM


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
        self.size = EvaluationSize()  # of a test
        self.last_report: Report | None = None  # of the last `finish`
        self.last_images: dict[str, Column] | None = None  # the terms of each image, if it was a test
        self._initial_moment: Tensor | None = None  # of the current or last validation
        self._found_moment: Tensor | None = None  # in it
        self._bound: SplitBound | None = None

    def reset(self) -> None:
        """Discards the second moments of earlier fits."""
        self._initial_moment = self._found_moment = None

    def new_bound(self, trainer: Trainer, module: "DDPM", split: Split) -> SplitBound:
        """Returns an empty accumulator for a split, with the settings of this evaluator."""
        denoiser, decoder = module.denoiser, module.decoder
        assert decoder is not None
        num_steps = denoiser.schedule.num_steps
        if split == "val":
            num_calls = min(self.num_val_timesteps or num_steps, num_steps)
            return SplitBound(trainer, denoiser, decoder, split, num_calls, self._initial_moment)
        self.size.check(num_steps, available := tested_images(trainer))
        size = self.size
        if size.target_se is not None:
            size = smallest_test(trainer, module, size.target_se, available, self._found_moment, EVALUATION_SEED)
        num_calls, chosen = size.num_timesteps or num_steps, size.images(available, EVALUATION_SEED)
        return SplitBound(trainer, denoiser, decoder, split, num_calls, self._found_moment, self.exact, chosen)

    def begin(self, trainer: Trainer, module: "DDPM", split: Split) -> None:
        """Starts a pass over a split."""
        if self.exact and split == "test":
            check_flow(module.denoiser)
        if trainer.state.fn == "fit":
            self._initial_moment = self._found_moment
        self._bound = bound = self.new_bound(trainer, module, split)
        if split == "test" and bound.num_images is not None:
            num_calls, num_steps = bound.ledger.num_calls, module.denoiser.schedule.num_steps
            kind = "exact bound" if num_calls == num_steps else "estimate of the bound"
            rank_zero_info(f"The {kind} takes {num_calls:,} network calls for each of {bound.num_chosen:,} images.")
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
            report.save(run.report)
            write_arrays(run.image_bounds, images)
            print(f"\n{report}\nwritten to {run.report}, and each image's to {run.image_bounds.name}")

    def _begin(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> None:
        module = cast("DDPM", pl_module)
        module.evaluator.begin(trainer, module, split)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> Report:
        module = cast("DDPM", pl_module)
        report = module.evaluator.finish(trainer)
        values = report.metrics(split)
        if trainer.state.fn != "fit":
            values["step"] = max(module.trained_steps - 1, 0)  # Lightning's name of the x-axis, which counts from 0
        module.log_dict(values)
        return report
