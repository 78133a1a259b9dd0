"""One run, one named directory: its configuration, metrics, checkpoints, pictures and ledger."""

import csv
import tempfile
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

CONFIG = "config.yaml"


def run_directory(trainer: Trainer) -> Path:
    """Where a run keeps its files. Every process must ask, since Lightning broadcasts the answer."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def check_run_directory(directory: Path, starts_new_run: bool) -> None:
    """Makes the directory of a run if it is not there.

    Raises:
        ValueError: If it cannot be written to, or a new run would mix with one that is there.
    """
    checkpoints = directory / "checkpoints"
    if starts_new_run and ((directory / "metrics.csv").exists() or any(checkpoints.glob("*.ckpt"))):
        last = checkpoints / "last.ckpt"
        go_on = (
            f"continue it with --ckpt_path {last}" if last.exists() else "remove it, since it has no last checkpoint"
        )
        raise ValueError(
            f"{directory} already holds a run: {go_on}, or name another directory with --trainer.default_root_dir."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise ValueError(f"the run directory {directory} cannot be written to ({error.strerror}).") from None


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run's directory when a fit begins; other commands leave it alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See `SaveConfigCallback`."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the configuration to the loggers that keep one beside the run's directory."""
        for logger in trainer.loggers:
            if not isinstance(logger, RunLogger):
                logger.log_hyperparams({"config": self.config.as_dict()})


class RunLogger(CSVLogger):
    """Lightning's CSV logger, straight into the run's directory.

    It goes on with a ``metrics.csv`` that is there, where Lightning's would delete it: a resumed fit and a test belong
    to the same run.

    Args:
        directory: The run's directory.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__(save_dir=directory, name="", version="")

    @property
    def experiment(self) -> Any:
        """The writer of the process of rank 0."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])
