"""The callback that measures the bound in validation and testing."""

from typing import TYPE_CHECKING, cast

import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_ddpm.likelihood.report import Report
from lit_ddpm.training.evaluation import Split
from lit_ddpm.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM


class LogBound(Callback):
    """Drives the `Evaluation` of a `DDPM` through validation and testing, logs the bound and prints the report."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_setup(trainer, cast("DDPM", pl_module))
        denoiser = cast("DDPM", pl_module).denoiser
        if denoiser.x0_mse is None:  # an analytic variance is that of the posterior until a validation measures it
            denoiser.set_x0_mse(torch.zeros(denoiser.schedule.num_steps))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "val")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "val")
        if trainer.state.fn == "fit" and trainer.validating:
            _measure_variance(cast("DDPM", pl_module))

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = self._finish(trainer, pl_module, "test")
        run, bound = RunDirectory.of_trainer(trainer), cast("DDPM", pl_module).evaluation.last_bound
        assert bound is not None
        if trainer.is_global_zero:
            report.save(run.report)
            bound.save(run.image_bounds)
            print(f"\n{report}\nwritten to {run.report}, and each image's to {run.image_bounds.name}")

    def _begin(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> None:
        module = cast("DDPM", pl_module)
        _check_setup(trainer, module)
        module.evaluation.begin(trainer, module, split)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> Report:
        module = cast("DDPM", pl_module)
        report = module.evaluation.finish(trainer)
        values = report.metrics(split)
        if trainer.state.fn != "fit":
            values["step"] = max(module.trained_steps - 1, 0)  # Lightning's name of the x-axis, which counts from 0
        module.log_dict(values)
        return report


def _check_setup(trainer: Trainer, module: "DDPM") -> None:
    """Raises a RuntimeError if a module has not observed the data module of a Trainer."""
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None and module.data.name != type(datamodule).__name__:
        raise RuntimeError("the data are not known: setup of a DDPM must call super().setup(stage).")


def _measure_variance(module: "DDPM") -> None:
    """Sets the x0-MSE of a denoiser to that of the validation images; at t = 1 to the best variance of the decoder.

    Errors of whole pixel levels dominate the x0-MSE at t = 1, and a Gaussian that holds them blurs all pixels.
    """
    bound, denoiser = module.evaluation.last_bound, module.denoiser
    assert bound is not None
    x0_mse = bound.x0_mse()
    if bound.discrete:
        x0_mse[0] = denoiser.schedule.beta(1) * bound.decoder_scale()
    denoiser.set_x0_mse(x0_mse)
