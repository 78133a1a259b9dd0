"""Time of a training step by cause, and how much of it the network takes.

Fits ``configs/digits.yaml``, and the network of ``configs/cifar10.yaml`` at width 32 on random images in batches of 16,
with the callbacks that act at every step. Prints the median milliseconds of each cause over the steps, and its share of
a step; a cause inside another counts for itself alone.
"""

import statistics
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import lightning
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector

from benchmarks.common.fits import shipped_module, silent_trainer
from benchmarks.common.images import RandomDataModule
from benchmarks.common.report import table
from lit_ddpm import DDPM
from lit_ddpm.callbacks import EMA, ELBOProfile, Performance
from lit_ddpm.data import DigitsDataModule, ImageDataModule
from lit_ddpm.training import module as training_module
from lit_ddpm.training.optimization import SkipNonFinite
from lit_ddpm.training.run_directory import RunLogger

NETWORK = ("network, forward", "network, backward")
WARM_UP = 10  # steps left out

OPTIONS = {
    "--steps": {"type": int, "default": 100},
}


class Causes:
    """The seconds of each cause in the current step; a cause inside another counts for itself alone."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._current: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = time.perf_counter()

    def _account(self) -> None:
        now = time.perf_counter()
        self._current[self._stack[-1] if self._stack else "Lightning and the rest"] += now - self._since
        self._since = now

    def next_step(self, *_: Any) -> None:
        """Ends a step and begins the next."""
        self._account()
        self.steps.append(dict(self._current))
        self._current.clear()

    @contextmanager
    def cause(self, name: str) -> Iterator[None]:
        """Counts the time of a block for a cause."""
        self._account()
        self._stack.append(name)
        try:
            yield
        finally:
            self._account()
            self._stack.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function whose calls count for a cause."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.cause(name):
                return function(*args, **kwargs)

        return call


def fit(module: DDPM, data: ImageDataModule, clip: float, num_steps: int) -> list[dict[str, float]]:
    """Trains a module for some steps and returns the seconds of each cause in each step."""
    causes = Causes()
    methods: list[tuple[Any, str, str]] = [
        (_PrefetchDataFetcher, "__next__", "data"),
        (SingleDeviceStrategy, "batch_to_device", "data"),
        (type(data), "on_after_batch_transfer", "data"),
        (training_module, "loss_of_batch", "timesteps, noise, prediction"),
        (type(module.objective), "__call__", "objective"),
        (training_module, "kl_metrics", "both forms of the KL"),
        (ELBOProfile, "on_train_batch_end", "running profile of the KL"),
        (DDPM, "log", "logging"),
        (DDPM, "log_dict", "logging"),
        (_LoggerConnector, "on_batch_end", "logging"),
        (_LoggerConnector, "update_train_step_metrics", "logging"),
        (SkipNonFinite, "on_before_optimizer_step", "gradient norm and clipping"),
        (SkipNonFinite, "clip", "gradient norm and clipping"),
        (EMA, "on_train_batch_end", "weight averaging"),
        (Performance, "on_train_batch_end", "measurement of the speed"),
        (_TrainingEpochLoop, "update_lr_schedulers", "learning rate"),
        (SingleDeviceStrategy, "backward", NETWORK[1]),
        (module.denoiser.network, "forward", NETWORK[0]),
    ]

    def time_optimizer(trainer: lightning.Trainer, *_: Any) -> None:
        optimizer: Any = trainer.optimizers[0]
        step = optimizer.step

        def timed_step(closure: Callable[[], Any]) -> Any:
            with causes.cause("optimizer"):
                return step(causes.timed("Lightning and the rest", closure))

        optimizer.step = timed_step

    with ExitStack() as stack:
        for owner, name, cause in methods:
            stack.enter_context(mock.patch.object(owner, name, causes.timed(cause, getattr(owner, name))))
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        hooks = LambdaCallback(on_train_start=time_optimizer, on_train_batch_end=causes.next_step)
        trainer = silent_trainer(
            accelerator="cpu",
            max_steps=WARM_UP + num_steps,
            gradient_clip_val=clip,
            callbacks=[ELBOProfile(), Performance(), EMA(0.995), hooks],
            logger=RunLogger(directory),
            default_root_dir=directory,
        )
        trainer.fit(module, data)
    return causes.steps[WARM_UP:]


def main(args: Namespace) -> dict[str, dict[str, float]]:
    """Measures the causes in both settings."""
    cifar10 = shipped_module("cifar10", "--model.network.width=32")
    fits = {
        "digits": (shipped_module("digits"), DigitsDataModule(batch_size=64), 0.004),
        "32x32, width 32": (cifar10, RandomDataModule(640, batch_size=16), 1.0),
    }
    medians: dict[str, dict[str, float]] = {}
    for name, (module, data, clip) in fits.items():
        steps = fit(module, data, clip, args.steps)
        found = {cause: 1000 * statistics.median(s.get(cause, 0.0) for s in steps) for cause in steps[-1]}
        total = 1000 * statistics.median(sum(step.values()) for step in steps)
        medians[name] = found | {"outside the network": total - sum(found[part] for part in NETWORK), "step": total}
    order = sorted(medians["digits"], key=lambda cause: -medians["digits"][cause])
    rows = [
        [cause, *(cell for m in medians.values() for cell in (f"{m[cause]:.2f}", f"{m[cause] / m['step']:.1%}"))]
        for cause in order
    ]
    print(f"Median milliseconds of a step, {torch.get_num_threads()} threads:\n")
    print(table(["cause", *(cell for name in medians for cell in (f"{name} (ms)", "share"))], rows))
    return medians
