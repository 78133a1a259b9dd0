"""The runs of a comparison: for each a fit, a test and samples in separate processes and one directory."""

import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities import move_data_to_device

from lit_ddpm._internal.files import atomic_write, has_files, number_of, read_json_lines, write_json
from lit_ddpm.callbacks.sample_metrics import SampleMetrics
from lit_ddpm.compare.arms import Arm
from lit_ddpm.data.base import ImageDataModule
from lit_ddpm.diffusion.denoiser import evaluating
from lit_ddpm.diffusion.ledger import Report
from lit_ddpm.training.run_directory import RunDirectory

NUM_SAMPLES = 64  # in the report
STARTUP_SECONDS = 6.0  # of a process, approximately


@dataclass(frozen=True)
class Result:
    """The results of a run."""

    report: Report  # the ledger of the test split
    samples: dict[str, float]  # sample metrics of the test, such as ``fid_digits``
    images_per_s: float | None  # the median training speed; None without the callback `Performance`


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int  # of weights, data order, t and eps; all arms have the same seeds
    files: RunDirectory
    group: str  # of the comparison's runs in W&B
    draws_samples: bool  # for the report

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that is measured."""
        return self.arm.checkpoint or self.files.last_checkpoint

    @property
    def done(self) -> bool:
        """Whether all commands are complete."""
        return "test" in self._durations()

    def _durations(self) -> dict[str, float]:
        """Returns the seconds of each completed command."""
        return dict(json.loads(self.files.durations.read_text())) if self.files.durations.is_file() else {}

    def config(self) -> dict[str, Any]:
        """Returns the configuration of the arm with the seed and directory of this run, and its name in W&B."""
        config: dict[str, Any] = json.loads(json.dumps(self.arm.config))
        config["seed_everything"] = self.seed
        config["trainer"]["default_root_dir"] = str(self.files.path)
        loggers = config["trainer"].get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, dict) and logger.get("class_path", "").endswith("WandbLogger"):
                logger["init_args"] |= {"group": self.group, "name": f"{self.arm.name}-{self.seed}"}
        return config

    def config_yaml(self) -> str:
        """Returns the configuration as YAML."""
        return yaml.safe_dump(self.config(), sort_keys=False)

    def check(self) -> None:
        """Raises a ValueError if the directory contains a run of another configuration."""
        path = self.files.arm_config
        existing = yaml.safe_load(path.read_text()) if path.is_file() else None
        if has_files(self.files.path) and existing != self.config():
            raise ValueError(
                f"{self.files.path} contains a run of another configuration: set another directory with --output_dir, "
                "or remove this one."
            )

    def execute(self) -> None:
        """Fits unless the model is trained, draws samples and tests; resumes from the last checkpoint if there is one.

        Raises a `subprocess.CalledProcessError` if a command fails; the log contains the reason.
        """
        files = self.files
        resumes, trains = files.last_checkpoint.is_file(), self.arm.checkpoint is None
        if trains and not resumes and files.path.exists():
            shutil.rmtree(files.path)
        files.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(files.arm_config) as partial:
            partial.write_text(self.config_yaml())
        # With a checkpoint the configuration of the run is used; it also contains the identifier of a W&B run.
        config_args, checkpoint_args = ["--config", str(files.arm_config)], ["--ckpt_path", str(self.checkpoint)]
        model_args = checkpoint_args if trains else [*config_args, *checkpoint_args]
        commands = {"fit": checkpoint_args if resumes else config_args} if trains else {}
        if self.draws_samples:
            commands["predict"] = [*model_args, f"--num_samples={NUM_SAMPLES}"]
        commands["test"] = model_args
        for command, args in commands.items():
            durations = self._durations()
            if command not in durations:
                start = time.monotonic()
                self._run_process(command, *args)
                write_json(files.durations, durations | {command: time.monotonic() - start})

    def _run_process(self, command: str, *args: str) -> None:
        with self.files.log.open("a") as log:
            full_command = [sys.executable, "-m", "lit_ddpm", command, *args]
            process = subprocess.Popen(full_command, stdout=log, stderr=subprocess.STDOUT)
            try:
                while process.poll() is None:
                    time.sleep(0.5)
                    if sys.stdout.isatty():
                        width = shutil.get_terminal_size().columns - 1
                        print(f"\r{self.name}: {command} | {self.last_output()}"[:width].ljust(width), end="\r")
            finally:  # an interrupt reaches the process too
                process.wait()
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, full_command)

    def last_output(self) -> str:
        """Returns the last line of the log, or the last state of its progress bar."""
        lines = self.files.log.read_text(errors="replace").replace("\r", "\n").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def result(self) -> Result:
        """Returns the results of a complete run."""
        samples = {}
        for record in read_json_lines(self.files.sample_metrics):
            if record["command"] == "test":  # the last one counts
                extractor = record["protocol"]["extractor"].split(" ")[0]
                samples = {f"{name}_{extractor}": number_of(value) for name, value in record["metrics"].items()}
        with self.files.metrics.open(newline="") as file:
            speeds = [float(row["perf/images_per_s"]) for row in csv.DictReader(file) if row.get("perf/images_per_s")]
        return Result(Report.load(self.files.ledger), samples, statistics.median(speeds) if speeds else None)


def expected_seconds(arm: Arm, at_most: float = 10.0) -> float | None:
    """Estimates the seconds of a run from a training step and a network call, timed on a batch of training images.

    Returns None for data other than an `ImageDataModule`.
    """
    module, data, trainer = arm.module, arm.data, arm.trainer
    if not isinstance(data, ImageDataModule):
        return None
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    images = len(data.test_dataloader()) * data.eval_batch_size
    device, T = trainer.strategy.root_device, module.denoiser.schedule.num_steps
    module.to(device)
    first = move_data_to_device(next(iter(data.train_dataloader())), device)
    x_0, cond = module.unpack_batch(data.on_after_batch_transfer(first, 0))
    batch = len(x_0)

    def train() -> None:
        pred = module.denoiser.predict(x_0, torch.randint(2, T + 1, (batch,)), torch.randn_like(x_0), **cond)
        torch.autograd.backward(module.objective(module.denoiser, pred).mean())

    def evaluate() -> None:
        with evaluating(module.denoiser):
            module.denoiser(x_0, T, **cond)

    with trainer.precision_plugin.forward_context():
        step = _seconds(train, at_most) if arm.checkpoint is None else 0.0
        call = _seconds(evaluate, at_most)
    module.to("cpu")
    module.zero_grad()
    epochs = trainer.max_epochs or 0
    steps = trainer.max_steps if trainer.max_steps > 0 else epochs * len(data.train_dataloader())
    metrics = [c for c in getattr(trainer, "callbacks", []) if isinstance(c, SampleMetrics)]
    sampled = sum(c.num_samples for c in metrics) * (module.sampler.num_steps or T)
    return float(2 * STARTUP_SECONDS + steps * step + (images * T + sampled) * call / batch)


def _seconds(action: Callable[[], None], at_most: float) -> float:
    """Returns the median of up to three timings after a warm-up."""
    times = []
    for _ in range(4):
        start = time.monotonic()
        action()
        times.append(time.monotonic() - start)
        if sum(times) > at_most:
            break
    return statistics.median(times[1:] or times)


def minutes(seconds: float) -> str:
    """Formats a duration."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def run_all(runs: Sequence[Run]) -> list[Run]:
    """Executes the runs that are not done, one after another, and returns those that failed."""
    failed, spent = [], []
    for number, run in enumerate(runs, 1):
        if run.done:
            continue
        start = time.monotonic()
        try:
            run.execute()
        except subprocess.CalledProcessError:
            failed.append(run)
            print(f"[{number}/{len(runs)}] {run.name} failed: {run.last_output()} ({run.files.log})", flush=True)
            continue
        spent.append(time.monotonic() - start)
        remaining = sum(not other.done for other in runs[number:])
        estimate = f", about {minutes(remaining * statistics.mean(spent))} left" if remaining else ""
        print(f"[{number}/{len(runs)}] {run.name}: {minutes(spent[-1])}{estimate}".ljust(79), flush=True)
    return failed
