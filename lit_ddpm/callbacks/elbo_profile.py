"""The bound by timestep, in training and testing."""

import csv
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.device import to_device
from lit_ddpm._internal.files import atomic_write
from lit_ddpm.callbacks import plots
from lit_ddpm.callbacks.callback import DDPMCallback
from lit_ddpm.callbacks.loggers import log_config, log_image, log_table, step_of, summarize
from lit_ddpm.diffusion.gaussian import to_float64
from lit_ddpm.diffusion.objective import weight_on_x0_mse
from lit_ddpm.diffusion.weighting import kl_weight
from lit_ddpm.likelihood.bound import bits_per_dim
from lit_ddpm.training.evaluation import Split
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory


class ELBOProfile(DDPMCallback):
    """Plots the bound by timestep, from the network calls of validation and testing.

    - ``<split>/elbo_terms``: each term L_{t-1} against t, next to its running mean over training batches.
    - ``<split>/elbo_rate``: the cumulative bound from T down to t.
    - ``<split>/rate_distortion``: that rate against the RMSE of x0_hat (Ho et al. 2020, figure 5).
    - ``objective_weights``: the objective's weight on the x0-MSE next to that of the KL, once.
    - ``<split>/elbo_profile``: the values of the plots as a table.

    Plots and table are written to ``profile/`` in the run directory. TensorBoard and W&B receive the plots, W&B also
    the table. The loggers' configuration receives the names of the objective and its weighting, and the W&B summary
    shows the best ``val/bpd``.

    Args:
        every_n_epochs: Plot in the validation of every n-th epoch; ``validate`` and ``test`` always plot.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self._training_kl: Tensor | None = None  # sums and counts by timestep since the last plot, [2, T - 1]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._training_kl = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = self.ddpm(pl_module)
        weighting = getattr(module.objective, "weighting", None)  # of X0MSE, or of a user's objective
        names = {
            "objective": type(module.objective).__name__,
            "parametrization": type(module.denoiser.parametrization).__name__,
            "schedule": type(module.denoiser.schedule).__name__,
            "weighting": type(weighting).__name__ if weighting is not None else "none",
        }
        log_config(trainer, {"names": names})
        summarize(trainer, "val/bpd", "min")
        label = names["objective"] + (f", {names['weighting']}" if weighting is not None else "")
        path = RunDirectory.of_trainer(trainer).profile / "objective_weights.png"
        if trainer.is_global_zero:  # the other ranks need no plot
            log_image(trainer, "objective_weights", plots.plot_weights(*_weights(module), label), path, label)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = self.ddpm(pl_module)
        if self._training_kl is None:
            self._training_kl = _zeros(module)
        if (last := module.last_kl) is not None:
            values = torch.stack([last.kl, torch.ones_like(last.kl)])
            self._training_kl.index_add_(1, to_device(last.t - 2, last.kl.device), values)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_due(trainer):
            self._plot(trainer, self.ddpm(pl_module), "val")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._plot(trainer, self.ddpm(pl_module), "test")

    def _plot(self, trainer: Trainer, module: DDPM, split: Split) -> None:
        report = module.evaluation.last_report
        assert report is not None
        training_kl = self._training_kl if self._training_kl is not None else _zeros(module)
        self._training_kl = None
        training_kl = trainer.strategy.reduce(training_kl, reduce_op="sum")
        directory = RunDirectory.of_trainer(trainer).profile
        if not trainer.is_global_zero:
            return
        nats, counts = training_kl.cpu().double()
        in_unit = bits_per_dim(nats, 1) if report.unit == "bits/dim" else nats
        table = plots.profile_table(report, (in_unit, counts), *_weights(module))
        images = {
            "elbo_terms": plots.plot_terms(table, report.unit),
            "elbo_rate": plots.plot_rate(table, report.terms["total"].value, report.unit),
            "rate_distortion": plots.plot_rate_distortion(table, report.unit),
        }
        step = step_of(trainer)
        caption = f"step {step}, {report.num_images} images, {report.num_calls} network calls for each image"
        for name, image in images.items():
            log_image(trainer, f"{split}/{name}", image, directory / f"{split}_{name}_{step:07d}.png", caption)
        rows = np.stack(list(table.values()), axis=1).tolist()
        log_table(trainer, f"{split}/elbo_profile", list(table), rows)
        path = directory / f"{split}_elbo_profile_{step:07d}.csv"
        with atomic_write(path) as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows([list(table), *rows])


def _zeros(module: DDPM) -> Tensor:
    return to_float64(torch.zeros(2, module.denoiser.schedule.num_steps - 1, device=module.device))


def _weights(module: DDPM) -> tuple[list[float], list[float]]:
    """Returns the weights on the x0-MSE of the objective and of the KL, for t = 2..T."""
    denoiser = module.denoiser
    t = torch.arange(2, denoiser.schedule.num_steps + 1)
    weights_of_kl = kl_weight(denoiser.schedule, t, denoiser.training_variance)
    return weight_on_x0_mse(module.objective, denoiser).tolist(), weights_of_kl.tolist()
