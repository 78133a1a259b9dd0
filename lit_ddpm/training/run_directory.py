"""One run, one directory: its configuration, metrics, checkpoints, images and report."""

import csv
import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import atomic_write, create_directory, read_json_lines, write_json_lines


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
        self.best_checkpoint = self.checkpoints / "best.ckpt"  # the one with the lowest bound of the validation split
        self.samples = path / "samples"  # the sample grids and trajectories of a fit
        self.profile = path / "profile"  # the plots and tables of the bound by timestep
        self.report = path / "bound.json"  # the report of the last test
        self.image_bounds = path / "bound.npz"  # its terms for each image
        self.gradients = path / "gradients.npz"  # the gradient statistics of the last ``gradients``
        self.sample_metrics = path / "sample_metrics.jsonl"  # FID, KID and IS with their protocols, a line each time
        self.predictions = path / "predict"  # the images of ``predict``
        self.variant_config = path / "variant.yaml"  # the configuration that ``compare`` started the run with
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

    def best_or_last_checkpoint(self) -> Path | None:
        """Returns the checkpoint to measure, None without one."""
        return next((path for path in (self.best_checkpoint, self.last_checkpoint) if path.is_file()), None)

    def prepare(self, new_run: bool) -> None:
        """Creates the directory.

        Raises:
            ValueError: If it is not writable, or already contains a run and this is a `new_run`.
        """
        if new_run and (self.metrics.exists() or any(self.checkpoints.glob("*.ckpt"))):
            last = self.last_checkpoint
            advice = f"resume it with --ckpt_path {last}" if last.exists() else "remove it, since it has no last.ckpt"
            raise InputError(
                f"{self.path} already contains a run: {advice}, or set another directory with "
                "--trainer.default_root_dir."
            )
        create_directory(self.path, "run directory")

    def save_config(self, parser: LightningArgumentParser, config: Namespace) -> None:
        """Writes the resolved configuration."""
        with atomic_write(self.config) as partial:
            parser.save(config, partial, skip_none=False, overwrite=True, multifile=False)

    def last_test_step(self) -> int | None:
        """Returns the x-axis position of the metrics of the last test, None without one."""
        header, rows = _read_csv(self.metrics)
        tests = [int(row["step"]) for row in rows if any(row[key] for key in header if "test/" in key)]
        return tests[-1] if tests else None

    def rewind(self, step: int) -> None:
        """Removes the metrics of a fit after `step` optimizer steps, which a run that resumes there repeats."""
        header, rows = _read_csv(self.metrics)
        kept = [row for row in rows if int(row["step"]) < step or any(row[key] for key in header if "test/" in key)]
        if rows:  # a partial row is removed too
            _write_csv(self.metrics, header, kept)
        records = read_json_lines(self.sample_metrics)
        kept_records = [record for record in records if record["command"] != "fit" or record["global_step"] <= step]
        if len(kept_records) < len(records):
            write_json_lines(self.sample_metrics, kept_records)


def new_directory(path: Path) -> Path:
    """Creates and returns the first of ``path``, ``path_2``, ``path_3``, ... that does not exist."""
    create_directory(path.parent, "run directory")
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}_{number}")
        with suppress(FileExistsError):
            candidate.mkdir()
            return candidate
    raise AssertionError


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run directory at the start of a fit, and at no other command.

    A fit that is resumed from a checkpoint also removes the metrics of later steps, which it repeats.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        run = RunDirectory.of_trainer(trainer)
        if trainer.is_global_zero:
            run.save_config(self.parser, self.config)
            for logger in trainer.loggers:
                if not isinstance(logger, RunLogger):
                    logger.log_hyperparams({"config": self.config.as_dict()})

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = RunDirectory.of_trainer(trainer)
        if trainer.is_global_zero:
            run.rewind(trainer.global_step)


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
        self.metrics_keys = _read_csv(Path(self.metrics_file_path))[0]

    @override
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:  # Lightning 2.6 could lose the file here
        path = Path(self.metrics_file_path)
        _write_csv(path, fieldnames, _read_csv(path)[1])


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the header and the complete rows of a CSV file; both are empty if it does not exist."""
    if not path.is_file():
        return [], []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values()]  # a killed process can leave part of a row
        return list(reader.fieldnames or []), rows


def _write_csv(path: Path, header: list[str], rows: list[dict[str, str]]) -> None:
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
