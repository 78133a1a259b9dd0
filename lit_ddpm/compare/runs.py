"""The runs of a comparison: for each a fit, samples, gradients and a test in separate processes and one directory."""

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import NDArray

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import atomic_write, has_files, number_of, read_arrays, read_json_lines, write_json
from lit_ddpm.compare.variants import Variant
from lit_ddpm.diffusion.gradients import GradientStatistics
from lit_ddpm.likelihood.report import Report
from lit_ddpm.training.run_directory import RunDirectory

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows, where runs are not locked

NUM_SAMPLES = 64  # in the report


@dataclass(frozen=True)
class Result:
    """The results of a run."""

    report: Report  # of the test split
    images: dict[str, NDArray[Any]]  # the terms of its bound for each image, and their index
    samples: dict[str, float]  # sample metrics of the test, such as ``fid_digits``
    gradients: GradientStatistics | None  # of the first seed
    images_per_s: float | None  # the median training speed; None without the callback `Performance`


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: Variant
    seed: int  # of weights, data order, t and eps; all variants have the same seeds
    files: RunDirectory
    group: str  # of the comparison's runs in W&B

    @property
    def is_first_seed(self) -> bool:
        """Whether the run also draws samples and measures gradients, for the report."""
        return self.seed == 0

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that is measured."""
        return self.variant.checkpoint or self.files.last_checkpoint

    @property
    def done(self) -> bool:
        """Whether all commands are complete."""
        return "test" in self._durations()

    @contextmanager
    def lock(self, wait: bool) -> Iterator[int | None]:
        """Holds the run for this process, on any machine with the same file system.

        Yields the descriptor of the lock, for child processes to keep it; or None if another process holds it and this
        one does not `wait`. The lock of a killed process is free.
        """
        self.files.path.parent.mkdir(parents=True, exist_ok=True)
        with self.files.path.with_suffix(".lock").open("a") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()

    def _durations(self) -> dict[str, float]:
        """Returns the seconds of each completed command."""
        return dict(json.loads(self.files.durations.read_text())) if self.files.durations.is_file() else {}

    def config(self) -> dict[str, Any]:
        """Returns the configuration of the variant with the seed and directory of this run, and its name in W&B."""
        config: dict[str, Any] = json.loads(json.dumps(self.variant.config))
        config["seed_everything"] = self.seed
        config["trainer"]["default_root_dir"] = str(self.files.path)
        for logger in wandb_loggers(config):
            logger["init_args"] |= {"group": self.group, "name": f"{self.variant.name}-{self.seed}"}
        return config

    def config_yaml(self) -> str:
        """Returns the configuration as YAML."""
        return yaml.safe_dump(self.config(), sort_keys=False)

    def check(self) -> None:
        """Raises a ValueError if the directory contains a run of another configuration."""
        path = self.files.variant_config
        existing = yaml.safe_load(path.read_text()) if path.is_file() else None
        if has_files(self.files.path) and existing != self.config():
            raise InputError(
                f"{self.files.path} contains a run of another configuration: set another directory with --output_dir, "
                "or remove this one."
            )

    def attempt(self, wait: bool = False, environment: Mapping[str, str] = os.environ) -> bool:
        """Executes the run unless it is done or another process holds it, see `lock`; returns whether it executed it.

        Raises a `subprocess.CalledProcessError` if a command fails.
        """
        with self.lock(wait) as lock:
            if lock is None or self.done:
                return False
            self.execute(lock, environment)
            return True

    def execute(self, lock: int, environment: Mapping[str, str] = os.environ) -> None:
        """Fits unless the model is trained, and measures it; resumes from the last checkpoint if there is one.

        The caller holds the `lock`, which child processes keep, so a run is free only when all of them have ended.
        Raises a `subprocess.CalledProcessError` if a command fails; the log contains the reason.
        """
        files = self.files
        resumes, trains = files.last_checkpoint.is_file(), self.variant.checkpoint is None
        if trains and not resumes and files.path.exists():
            shutil.rmtree(files.path)
        files.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(files.variant_config) as partial:
            partial.write_text(self.config_yaml())
        # With a checkpoint the configuration of the run is used; it also contains the identifier of a W&B run.
        config_args, checkpoint_args = ["--config", str(files.variant_config)], ["--ckpt_path", str(self.checkpoint)]
        model_args = checkpoint_args if trains else [*config_args, *checkpoint_args]
        commands = {"fit": checkpoint_args if resumes else config_args} if trains else {}
        if self.is_first_seed:
            commands["predict"] = [*model_args, f"--num_samples={NUM_SAMPLES}"]
            commands["gradients"] = model_args
        commands["test"] = model_args
        for command, args in commands.items():
            durations = self._durations()
            if command not in durations:
                start = time.monotonic()
                self._run_process([command, *args], lock, environment)
                write_json(files.durations, durations | {command: time.monotonic() - start})

    def _run_process(self, args: list[str], lock: int, environment: Mapping[str, str]) -> None:
        with self.files.log.open("a") as log:
            command, kept = [sys.executable, "-m", "lit_ddpm", *args], [] if fcntl is None else [lock]
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=kept, check=True)

    def last_output(self) -> str:
        """Returns the last line of the log, or the last state of its progress bar."""
        text = self.files.log.read_text(errors="replace") if self.files.log.is_file() else ""
        lines = text.replace("\r", "\n").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def result(self) -> Result:
        """Returns the results of a complete run."""
        samples = {}
        for record in read_json_lines(self.files.sample_metrics):
            if record["command"] == "test":  # the last one counts
                extractor = record["protocol"]["extractor"].split(" ")[0]
                samples = {f"{name}_{extractor}": number_of(value) for name, value in record["metrics"].items()}
        speeds = []
        if self.files.metrics.is_file():
            with self.files.metrics.open(newline="") as file:
                speeds = [float(r["perf/images_per_s"]) for r in csv.DictReader(file) if r.get("perf/images_per_s")]
        gradients = GradientStatistics.load(self.files.gradients) if self.files.gradients.is_file() else None
        report, images = Report.load(self.files.report), read_arrays(self.files.image_bounds)
        return Result(report, images, samples, gradients, statistics.median(speeds) if speeds else None)


def wandb_loggers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the W&B loggers of a complete configuration."""
    loggers = config["trainer"].get("logger")
    return [
        logger
        for logger in (loggers if isinstance(loggers, list) else [loggers])
        if isinstance(logger, dict) and logger.get("class_path", "").endswith("WandbLogger")
    ]
