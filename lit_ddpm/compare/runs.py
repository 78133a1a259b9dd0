"""The runs of a comparison: each an ordinary fit and test in a process and a directory of its own."""

import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_ddpm.callbacks.sample_metrics import SampleMetrics
from lit_ddpm.compare.arms import Arm
from lit_ddpm.data.base import ImageDataModule
from lit_ddpm.diffusion.denoiser import evaluating
from lit_ddpm.diffusion.ledger import Report

NUM_PICTURES = 64
CONFIG = "arm.yaml"
SECONDS = "seconds.json"
START = 6.0  # seconds, about what a process takes until it does something


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        report: The ledger of the test split.
        samples: FID and its like of the test, each under its name and its extractor's.
        images_per_s: The median speed of training; None without the callback `Performance`.
    """

    report: Report
    samples: dict[str, float]
    images_per_s: float | None


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm: The arm.
        seed: The seed of weights, data order, t and eps: arms of one seed get the same.
        directory: Where everything of it goes.
        group: The name that W&B gathers the runs of a comparison under.
        pictures: Whether it also draws, for the report.
    """

    arm: Arm
    seed: int
    directory: Path
    group: str
    pictures: bool

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.directory / "log.txt"

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return "test" in self._seconds()

    def _seconds(self) -> dict[str, float]:
        """What each part that is done took."""
        path = self.directory / SECONDS
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def config(self) -> dict[str, Any]:
        """The arm's configuration with this run's seed and directory, and for W&B its name and group."""
        config: dict[str, Any] = json.loads(json.dumps(self.arm.config))
        config["seed_everything"] = self.seed
        config["trainer"]["default_root_dir"] = str(self.directory)
        loggers = config["trainer"].get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, dict) and logger.get("class_path", "").endswith("WandbLogger"):
                logger["init_args"] |= {"group": self.group, "name": f"{self.arm.name}-{self.seed}"}
        return config

    def check(self) -> None:
        """Raises a ValueError if the directory holds a run of another configuration."""
        path = self.directory / CONFIG
        theirs = yaml.safe_load(path.read_text()) if path.is_file() else None
        if self.directory.exists() and any(self.directory.iterdir()) and theirs != self.config():
            raise ValueError(
                f"{self.directory} holds a run of another configuration: name another directory with --output_dir, or "
                "remove this one."
            )

    def execute(self) -> None:
        """Fits, tests and draws; goes on from the last checkpoint if there is one.

        Raises:
            subprocess.CalledProcessError: If a process fails; its log says why.
        """
        checkpoint = self.directory / "checkpoints" / "last.ckpt"
        # From a checkpoint on, the configuration beside it is used, which also knows the id of a W&B run.
        of_last = ["--ckpt_path", str(checkpoint)]
        if not checkpoint.is_file() and self.directory.exists():
            shutil.rmtree(self.directory)  # nothing to go on from
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / CONFIG
        config.write_text(yaml.safe_dump(self.config(), sort_keys=False))
        parts = {"fit": of_last if checkpoint.is_file() else ["--config", str(config)]}
        if self.pictures:
            parts["predict"] = [*of_last, f"--num_samples={NUM_PICTURES}"]
        parts["test"] = of_last
        for command, args in parts.items():
            seconds = self._seconds()
            if command not in seconds:
                start = time.monotonic()
                self._process(command, *args)
                seconds[command] = time.monotonic() - start
                (self.directory / SECONDS).write_text(json.dumps(seconds) + "\n")

    def _process(self, command: str, *args: str) -> None:
        with self.log.open("a") as log:
            full = [sys.executable, "-m", "lit_ddpm", command, *args]
            process = subprocess.Popen(full, stdout=log, stderr=subprocess.STDOUT)
            try:
                while process.poll() is None:
                    time.sleep(0.5)
                    if sys.stdout.isatty():
                        width = shutil.get_terminal_size().columns - 1
                        print(f"\r{self.name}: {command} | {self.last_words()}"[:width].ljust(width), end="\r")
            finally:  # interrupted, and the process too
                process.wait()
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, full)

    def last_words(self) -> str:
        """The last line of the log, or the last state of a progress bar in it."""
        lines = self.log.read_text(errors="replace").replace("\r", "\n").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def result(self) -> Result:
        """What the run found; it must be done."""
        path = self.directory / "sample_metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        tests = [line for line in lines if line["command"] == "test"]
        samples = {}
        if tests:
            extractor = tests[-1]["protocol"]["extractor"].split(" ")[0]
            samples = {f"{name}_{extractor}": value for name, value in tests[-1]["metrics"].items()}
        with (self.directory / "metrics.csv").open(newline="") as file:
            speeds = [float(row["perf/images_per_s"]) for row in csv.DictReader(file) if row.get("perf/images_per_s")]
        report = Report.load(self.directory / "ledger.json")
        return Result(report, samples, statistics.median(speeds) if speeds else None)


def expected_seconds(arm: Arm, at_most: float = 10.0) -> float | None:
    """About how long one run takes, from a training step and a batch of the bound timed on random images.

    None for data of another kind than `ImageDataModule`, or if the network wants more than images, timesteps, labels.
    """
    module, data, trainer = arm.module, arm.data, arm.trainer
    if not isinstance(data, ImageDataModule) or data.image_shape is None:
        return None
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    batch, images = data.batch_size, len(data.test_dataloader()) * data.eval_batch_size
    device, T = trainer.strategy.root_device, module.denoiser.schedule.num_steps
    module.to(device)
    x_0 = torch.rand(batch, *data.image_shape, device=device) * 2 - 1
    cond = {} if module.num_classes is None else {"label": torch.zeros(batch, dtype=torch.int64, device=device)}

    def train() -> None:
        pred = module.denoiser.predict(x_0, torch.randint(2, T + 1, (batch,)), torch.randn_like(x_0), **cond)
        torch.autograd.backward(module.objective(module.denoiser, pred).mean())

    def evaluate() -> None:
        with evaluating(module.denoiser):
            module.denoiser(x_0, T, **cond)

    with trainer.precision_plugin.forward_context():
        try:
            step, call = _seconds(train, at_most), _seconds(evaluate, at_most)
        except TypeError:
            return None
        finally:
            module.to("cpu")
            module.zero_grad()
    epochs = trainer.max_epochs or 0
    steps = trainer.max_steps if trainer.max_steps > 0 else epochs * len(data.train_dataloader())
    metrics = [c for c in getattr(trainer, "callbacks", []) if isinstance(c, SampleMetrics)]
    sampled = sum(c.num_samples for c in metrics) * (module.sampler.num_steps or T)
    return float(2 * START + steps * step + (images * T + sampled) * call / batch)


def _seconds(action: Any, at_most: float) -> float:
    """The median of up to three timings after a first that does not count."""
    times = []
    for _ in range(4):
        start = time.monotonic()
        action()
        times.append(time.monotonic() - start)
        if sum(times) > at_most:
            break
    return statistics.median(times[1:] or times)


def minutes(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def run_all(runs: Sequence[Run]) -> list[Run]:
    """Executes the runs that are not done, one after another; returns those that failed."""
    failed, spent = [], []
    for number, run in enumerate(runs, 1):
        if run.done:
            continue
        start = time.monotonic()
        try:
            run.execute()
        except subprocess.CalledProcessError:
            failed.append(run)
            print(f"[{number}/{len(runs)}] {run.name} failed: {run.last_words()} ({run.log})", flush=True)
            continue
        spent.append(time.monotonic() - start)
        left = sum(not other.done for other in runs[number:])
        later = f", about {minutes(left * statistics.mean(spent))} left" if left else ""
        print(f"[{number}/{len(runs)}] {run.name}: {minutes(spent[-1])}{later}".ljust(79), flush=True)
    return failed
