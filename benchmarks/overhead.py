"""Cost of a training step beyond its network.

Trains the model of ``configs/digits.yaml`` through Lightning with data module and logging, and times the network's
forward pass, the backward pass, and clipping and optimizer within each step. The rest is the cost of the module, the
logging, the data and Lightning. Prints medians over the steps, without and with `EMA`; both take turns, epoch by epoch.
"""

import statistics
import tempfile
from argparse import Namespace
from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LambdaCallback

from benchmarks.common.clock import Stopwatch, in_turns
from benchmarks.common.fits import shipped_module, silent_trainer
from benchmarks.common.report import table
from lit_ddpm.callbacks import EMA
from lit_ddpm.data import DigitsDataModule
from lit_ddpm.training.run_directory import RunLogger

WARM_UP = 5  # steps left out
PARTS = ("network forward", "backward", "clipping and optimizer")

OPTIONS = {
    "--batch_size": {"type": int, "default": 64},
    "--epochs": {"type": int, "default": 10},
}


def fit_epoch(batch_size: int, averages: bool) -> list[dict[str, float]]:
    """Trains a new model for an epoch and returns the milliseconds of each step and its parts, without warm-up."""
    watch = Stopwatch()

    def next_step(*_: Any) -> None:
        watch.stop("step")
        watch.start("step")  # the data is part of the step

    def hook(trainer: lightning.Trainer, *_: Any) -> None:
        trainer.optimizers[0].register_step_post_hook(lambda *_: watch.stop("clipping and optimizer"))

    parts = LambdaCallback(
        on_train_start=hook,
        on_before_backward=lambda *_: watch.start("backward"),
        on_after_backward=lambda *_: watch.stop("backward"),
        on_before_optimizer_step=lambda *_: watch.start("clipping and optimizer"),
        on_train_batch_end=next_step,
    )
    module = shipped_module("digits")
    watch.time_forward(module.denoiser.network)
    with tempfile.TemporaryDirectory() as directory:
        trainer = silent_trainer(
            accelerator="cpu",
            max_epochs=1,
            gradient_clip_val=0.004,
            callbacks=[*([EMA(0.995)] if averages else []), parts],
            logger=RunLogger(directory),
            log_every_n_steps=19,
        )
        trainer.fit(module, DigitsDataModule(batch_size=batch_size))
    steps = []
    durations = [watch.durations[part][1:] for part in PARTS]  # a step is timed from the end of the one before
    for step, *seconds in list(zip(watch.durations["step"], *durations, strict=True))[WARM_UP:]:
        parts_and_rest = dict(zip(PARTS, seconds, strict=True)) | {"everything else": step - sum(seconds), "step": step}
        steps.append({part: 1000 * value for part, value in parts_and_rest.items()})
    return steps


def main(args: Namespace) -> dict[str, dict[str, float]]:
    """Measures the parts of a step."""
    contestants = {
        "without EMA": partial(fit_epoch, args.batch_size, False),
        "with EMA": partial(fit_epoch, args.batch_size, True),
    }
    medians = {}
    for name, epochs in in_turns(contestants, args.epochs, warm_up=True).items():
        steps = [step for epoch in epochs for step in epoch]
        medians[name] = {part: statistics.median(step[part] for step in steps) for part in steps[0]}
    rows = [
        [part, *(cell for m in medians.values() for cell in (f"{m[part]:.2f}", f"{m[part] / m['step']:.1%}"))]
        for part in medians["without EMA"]
    ]
    print(f"Median milliseconds of a step, batch {args.batch_size}, {torch.get_num_threads()} threads:\n")
    print(table(["part", "ms", "share", "ms with EMA", "share"], rows))
    return medians
