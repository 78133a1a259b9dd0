"""One run, one directory: its configuration, metrics, checkpoints, images and ledger."""

import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run.

    Args:
        path: The directory, which need not exist.
    """

    path: Path

    @classmethod
    def of_trainer(cls, trainer: Trainer) -> "RunDirectory":
        """Returns the directory of a Trainer. Every rank must call it, since Lightning broadcasts the path."""
        return cls(Path(trainer.log_dir or trainer.default_root_dir))

    @classmethod
    def of_checkpoint(cls, path: Path) -> "RunDirectory | None":
        """Returns the directory that a checkpoint belongs to, or None for a file outside of a run."""
        run = cls(path.parent.parent)
        return run if path.parent == run.checkpoints and run.config.is_file() else None

    @property
    def config(self) -> Path:
        """The resolved configuration of the last fit."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """All logged scalars."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def samples(self) -> Path:
        """The sample grids and trajectories of a fit."""
        return self.path / "samples"

    @property
    def profile(self) -> Path:
        """The plots and tables of the bound by timestep."""
        return self.path / "profile"

    @property
    def ledger(self) -> Path:
        """The report of the last ``test``."""
        return self.path / "ledger.json"

    @property
    def sample_metrics(self) -> Path:
        """FID, KID and IS with their protocols, a line for each evaluation."""
        return self.path / "sample_metrics.jsonl"

    @property
    def predictions(self) -> Path:
        """The images of ``predict``."""
        return self.path / "predict"

    @property
    def arm_config(self) -> Path:
        """The configuration that ``compare`` started the run with."""
        return self.path / "arm.yaml"

    @property
    def durations(self) -> Path:
        """The seconds of each command that ``compare`` completed."""
        return self.path / "seconds.json"

    @property
    def log(self) -> Path:
        """The output of the commands that ``compare`` started."""
        return self.path / "log.txt"

    def prepare(self, new_run: bool) -> None:
        """Creates the directory.

        Raises:
            ValueError: If it is not writable, or already contains a run and this is a `new_run`.
        """
        if new_run and (self.metrics.exists() or any(self.checkpoints.glob("*.ckpt"))):
            last = self.last_checkpoint
            advice = f"resume it with --ckpt_path {last}" if last.exists() else "remove it, since it has no last.ckpt"
            raise ValueError(
                f"{self.path} already contains a run: {advice}, or set another directory with "
                "--trainer.default_root_dir."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise ValueError(f"the run directory {self.path} is not writable ({error.strerror}).") from None


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run directory at the start of a fit, and at no other command."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            if not isinstance(logger, RunLogger):
                logger.log_hyperparams({"config": self.config.as_dict()})


class RunLogger(CSVLogger):
    """Lightning's CSV logger that writes into the run directory and appends to an existing ``metrics.csv``.

    A resumed fit and a test belong to the same run; Lightning's own logger would delete the file.

    Args:
        directory: The run directory.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__(save_dir=directory, name="", version="")

    @property
    @override
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    @override
    def _check_log_dir_exists(self) -> None:  # Lightning 2.6 deletes the file here
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])
