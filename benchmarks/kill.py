"""Resumption of fits that SIGKILL ended at random moments, compared with fits that were left alone.

A fit of the digits by the command, with averaged weights, dropout, a learning-rate schedule and importance-sampled
timesteps, writes a checkpoint every step. The settings of its Trainer (length, limits, validation, accumulation) are
drawn at random for each fit, and every other fit runs on two processes. Prints how many of the killed and resumed fits
ended with the same weights, bit for bit, and the steps at which they were killed.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from argparse import Namespace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.fits import CONFIGS
from lit_ddpm.__main__ import main as lit_ddpm

CALLBACKS = """[
 {class_path: lit_ddpm.callbacks.EMA, init_args: {decay: 0.9}},
 {class_path: lightning.pytorch.callbacks.ModelCheckpoint,
  init_args: {filename: last, every_n_train_steps: 1, enable_version_counter: false}}]"""
SETTINGS = [
    "--model.network.width=16",
    "--model.network.multipliers=[1]",
    "--model.network.attention_levels=[]",
    "--model.network.num_blocks=1",
    "--model.network.head_channels=16",
    "--model.schedule.num_steps=32",
    "--model.sampler.num_steps=8",
    "--model.evaluation.num_val_timesteps=4",
    "--model.timesteps=ImportanceTimesteps",
    "--model.timesteps.history=2",
    "--data.batch_size=64",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    f"--trainer.callbacks={CALLBACKS}",
]
TRAINER_SETTINGS = (  # one of each group; an epoch has 19 batches on one process, 9 on two
    ("max_epochs=3", "max_steps=20 max_epochs=-1", "max_epochs=3 max_time=00:01:00:00"),
    ("limit_train_batches=null", "limit_train_batches=7", "limit_train_batches=0.5", "overfit_batches=6"),
    ("accumulate_grad_batches=1", "accumulate_grad_batches=2", "accumulate_grad_batches=3"),
    (
        "check_val_every_n_epoch=1",
        "check_val_every_n_epoch=2",
        "check_val_every_n_epoch=1 val_check_interval=3",
        "check_val_every_n_epoch=1 val_check_interval=0.5",
        "check_val_every_n_epoch=null val_check_interval=5",
        "check_val_every_n_epoch=1 limit_val_batches=0",
    ),
)
CHECKPOINT = Path("checkpoints") / "last.ckpt"
STATE = ("state_dict", "current_model_state", "optimizer_states", "timesteps")

OPTIONS = {
    "--kills": {"type": int, "default": 50},
    "--seed": {"type": int, "default": 0, "help": "of the settings and the moments"},
}


def random_settings(rng: random.Random) -> list[str]:
    """Draws the settings of a Trainer, as flags of the command."""
    return [f"--trainer.{setting}" for group in TRAINER_SETTINGS for setting in rng.choice(group).split()]


def arguments(directory: Path, settings: list[str], processes: int = 1) -> list[str]:
    """Returns the arguments of a fit into a directory."""
    where = [f"--trainer.default_root_dir={directory}", "--trainer.accelerator=cpu"]
    how = ["--trainer.strategy=ddp_fork", f"--trainer.devices={processes}"] if processes > 1 else []
    return ["fit", "--config", str(CONFIGS / "digits.yaml"), *SETTINGS, *settings, *where, *how]


def run_fit(options: list[str], log: Path) -> None:
    """Runs the command in a new process group, with its output in a file."""
    os.setsid()
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    lit_ddpm(options)


def fit(directory: Path, args: list[str], kill_after: float | None = None) -> float | None:
    """Fits in a forked process, resuming from the directory's checkpoint if there is one.

    Args:
        directory: The run directory.
        args: The arguments of the command.
        kill_after: Seconds after which the fit is killed, or None.

    Returns:
        The seconds of the fit, or None if it was killed.

    Raises:
        RuntimeError: If the fit fails.
    """
    checkpoint, log = directory / CHECKPOINT, directory.with_suffix(".log")
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint.is_file() else []
    if not resume:
        shutil.rmtree(directory, ignore_errors=True)
    # Forked, since a new interpreter would import torch and Lightning for longer than the fit takes.
    child = get_context("fork").Process(target=run_fit, args=([*args, *resume], log))
    start = time.perf_counter()  # not `clock.now`, which looks for a GPU: CUDA then refuses to start in a fork
    child.start()
    child.join(kill_after)
    if child.exitcode is None:
        os.killpg(child.ident or 0, signal.SIGKILL)
        child.join()
        return None
    if child.exitcode:
        raise RuntimeError(f"the fit in {directory} failed with {child.exitcode}: {log.read_text()[-2000:]}")
    return time.perf_counter() - start


def load(run: Path) -> dict[str, Any]:
    """Loads the checkpoint of a run, with the state of the module's parts next to the weights."""
    checkpoint: dict[str, Any] = torch.load(run / CHECKPOINT, weights_only=True)
    return checkpoint | checkpoint["lit_ddpm"]


def equal(a: Any, b: Any) -> bool:
    """Compares nested states bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def kill_and_resume(run: Path, args: list[str], seconds: float, rng: random.Random) -> int:
    """Kills a fit at a random moment, resumes it, and returns the step of the checkpoint that it left (0 if none)."""
    while fit(run, args, rng.uniform(0.3, 0.95) * seconds) is not None:
        shutil.rmtree(run)  # it ended before it was killed
    step = load(run)["global_step"] if (run / CHECKPOINT).is_file() else 0
    fit(run, args)
    return int(step)


def main(args: Namespace) -> dict[str, Any]:
    """Kills, resumes and compares."""
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
    rng = random.Random(args.seed)
    steps, different = [], []
    for number in range(args.kills):
        processes, settings = 1 + number % 2, random_settings(rng)
        with tempfile.TemporaryDirectory() as place:
            whole, run = Path(place) / "whole", Path(place) / "killed"
            seconds = fit(whole, arguments(whole, settings, processes)) or 0.0
            steps.append(kill_and_resume(run, arguments(run, settings, processes), seconds, rng))
            if not all(equal(load(whole)[key], load(run)[key]) for key in STATE):
                different.append(f"{' '.join(settings)} on {processes} processes, killed after step {steps[-1]}")
    num_equal = len(steps) - len(different)
    print(f"{num_equal} of {len(steps)} killed fits ended bit-equal; killed after steps {sorted(steps)}")
    for fit_that_differs in different:
        print(fit_that_differs)
    return {"equal": num_equal, "steps": steps, "different": different}
