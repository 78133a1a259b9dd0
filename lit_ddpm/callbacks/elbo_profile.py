"""The bound by timestep, while training and in testing."""

import csv
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm.callbacks import plots
from lit_ddpm.callbacks.loggers import log_config, log_picture, log_table, step_of, summarize
from lit_ddpm.diffusion.bound import bits_per_dim
from lit_ddpm.diffusion.gaussian import to_float64
from lit_ddpm.diffusion.objective import weight_on_x0_mse
from lit_ddpm.diffusion.weighting import kl_weight
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import run_directory


class ELBOProfile(Callback):
    """Shows where the bits go: pictures and a table of the bound by timestep, from what validation computed anyway.

    - ``<split>/elbo_terms``: each term L_{t-1} against t, beside its running estimate from training batches.
    - ``<split>/elbo_rate``: what has been paid of the bound from T down to t.
    - ``<split>/rate_distortion``: that rate against the RMSE of x0_hat (Ho et al. 2020, figure 5).
    - ``objective_weights``: the objective's weight on the x0-MSE beside the KL's, once.
    - ``<split>/elbo_profile``: the numbers behind the pictures.

    Pictures and table go to ``profile/`` in the run's directory, pictures to TensorBoard and W&B, the table to W&B. The
    configuration that loggers keep gets the objective and its weighting by name, and the summary the best ``val/bpd``.

    Args:
        every_n_epochs: Draw after the validation of every so many epochs; ``validate`` and ``test`` always draw.

    Raises:
        ValueError: If `every_n_epochs` is less than 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        check_at_least(self, 1, every_n_epochs=every_n_epochs)
        self.every_n_epochs = every_n_epochs
        self._training: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the module has a bound."""
        if not isinstance(pl_module, DDPM):
            raise ValueError(f"ELBOProfile shows the bound of a DDPM, not of a {type(pl_module).__name__}.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says by name what is trained, and shows the weights."""
        assert isinstance(pl_module, DDPM)
        self._training = None
        objective, denoiser = pl_module.objective, pl_module.denoiser
        weighting = getattr(objective, "weighting", None)
        parts = {"objective": objective, "parametrization": denoiser.parametrization, "schedule": denoiser.schedule}
        names = {name: type(part).__name__ for name, part in parts.items()}
        names["weighting"] = type(weighting).__name__ if weighting is not None else "none"
        log_config(trainer, {"names": names})
        summarize(trainer, "val/bpd", "min")
        label = names["objective"] + (f", {names['weighting']}" if weighting is not None else "")
        path = run_directory(trainer) / "profile" / "objective_weights.png"
        if trainer.is_global_zero:
            picture = plots.plot_weights(*_weights(pl_module), label)
            log_picture(trainer, "objective_weights", picture, path, label)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the batch to the running estimate, on the device."""
        assert isinstance(pl_module, DDPM)
        if pl_module.last_kl is None:
            return
        t, kl = pl_module.last_kl
        self._training = self._training if self._training is not None else _no_terms(pl_module)
        self._training.index_add_(1, (t - 2).to(kl.device), torch.stack([kl, torch.ones_like(kl)]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws in the epochs for it."""
        due = trainer.state.fn == "validate" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the full bound."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, module: LightningModule, split: str) -> None:
        assert isinstance(module, DDPM)
        report = module.last_report
        assert report is not None
        training = self._training if self._training is not None else _no_terms(module)
        training = trainer.strategy.reduce(training, reduce_op="sum") if trainer.world_size > 1 else training
        self._training = None
        directory = run_directory(trainer) / "profile"
        if not trainer.is_global_zero:
            return
        nats, counts = training.double().cpu()
        in_unit = bits_per_dim(nats, 1) if report.unit == "bits/dim" else nats
        table = plots.profile_table(report, (in_unit, counts), *_weights(module))
        pictures = {
            "elbo_terms": plots.plot_terms(table, report.unit),
            "elbo_rate": plots.plot_rate(table, report.terms["total"].value, report.unit),
            "rate_distortion": plots.plot_rate_distortion(table, report.unit),
        }
        caption = f"step {step_of(trainer)}, {report.num_images} images, {report.num_calls} network calls an image"
        for name, picture in pictures.items():
            path = directory / f"{split}_{name}_{step_of(trainer):07d}.png"
            log_picture(trainer, f"{split}/{name}", picture, path, caption)
        rows = torch.tensor([column.tolist() for column in table.values()], dtype=torch.float64).T.tolist()
        log_table(trainer, f"{split}/elbo_profile", list(table), rows)
        with (directory / f"{split}_elbo_profile_{step_of(trainer):07d}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([list(table), *rows])


def _no_terms(module: DDPM) -> Tensor:
    """Sums and numbers of KL terms by timestep, on the module's device."""
    return to_float64(torch.zeros(2, module.denoiser.schedule.num_steps - 1, device=module.device))


def _weights(module: DDPM) -> tuple[list[float], list[float]]:
    denoiser = module.denoiser
    t = torch.arange(2, denoiser.schedule.num_steps + 1)
    of_kl = kl_weight(denoiser.schedule, t, denoiser.variance)
    return weight_on_x0_mse(module.objective, denoiser).tolist(), of_kl.tolist()
