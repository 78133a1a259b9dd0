"""One run, one directory: its configuration, metrics, checkpoints, images and ledger."""

import csv
import tempfile
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override


class RunDirectory:
    """The files of a run; every other module takes their names from here.

    Args:
        path: The directory, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # the resolved configuration of the last fit
        self.metrics = path / "metrics.csv"  # all logged scalars
        self.checkpoints = path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"  # the one to resume from
        self.samples = path / "samples"  # the sample grids and trajectories of a fit
        self.profile = path / "profile"  # the plots and tables of the bound by timestep
        self.ledger = path / "ledger.json"  # the report of the last test
        self.sample_metrics = path / "sample_metrics.jsonl"  # FID, KID and IS with their protocols, a line each time
        self.predictions = path / "predict"  # the images of ``predict``
        self.arm_config = path / "arm.yaml"  # the configuration that ``compare`` started the run with
        self.durations = path / "seconds.json"  # of each command that ``compare`` completed
        self.log = path / "log.txt"  # the output of these commands

    @classmethod
    def of_trainer(cls, trainer: Trainer) -> "RunDirectory":
        """Returns the directory of a Trainer. Every rank must call it, since Lightning broadcasts the path."""
        return cls(Path(trainer.log_dir or trainer.default_root_dir))

    @classmethod
    def of_checkpoint(cls, path: Path) -> "RunDirectory | None":
        """Returns the directory that a checkpoint belongs to, or None for a file outside of a run."""
        run = cls(path.parent.parent)
        return run if path.parent == run.checkpoints and run.config.is_file() else None

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
    """Lightning's CSV logger, but it appends to an existing ``metrics.csv`` of the run directory.

    A resumed fit and a test belong to the same run; Lightning's own logger would delete the file.
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
