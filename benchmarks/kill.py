"""Kills fits with SIGKILL at random moments, goes on from what they left, and compares with one that was left alone.

python -m benchmarks kill --kills 50

A fit of the digits by the command, with averaged weights, dropout, a learning-rate schedule, importance-sampled
timesteps and accumulated gradients, that writes a checkpoint every step; every other time on two processes. Prints how
many of the fits that were killed ended with the same weights, bit for bit, and at which steps they were killed.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_ddpm.__main__ import main as lit_ddpm
from lit_ddpm.training.checkpoint import check_file

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"
CALLBACKS = """[
 {class_path: lit_ddpm.callbacks.EMA, init_args: {decay: 0.9}},
 {class_path: lightning.pytorch.callbacks.ModelCheckpoint,
  init_args: {filename: last, every_n_train_steps: 1, enable_version_counter: false}}]"""
SETTINGS = [
    "--model.network.width=16",
    "--model.network.num_blocks=1",
    "--model.network.head_channels=16",
    "--model.schedule.num_steps=32",
    "--model.sampler.num_steps=8",
    "--model.num_val_timesteps=4",
    "--model.timesteps=ImportanceTimesteps",
    "--model.timesteps.history=2",
    "--data.batch_size=64",
    "--trainer.max_epochs=3",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    f"--trainer.callbacks={CALLBACKS}",
]
CHECKPOINT = Path("checkpoints") / "last.ckpt"


def arguments(directory: Path, processes: int) -> list[str]:
    """Those of a fit into a directory."""
    where = [f"--trainer.default_root_dir={directory}", "--trainer.accelerator=cpu"]
    how = ["--trainer.strategy=ddp_fork", f"--trainer.devices={processes}"] if processes > 1 else []
    return ["fit", "--config", str(CONFIG), *SETTINGS, *where, *how]


def in_child(act: Callable[[], Any], log: Path) -> int:
    """Starts `act` in a process of a group of its own and returns its number; nothing is imported anew."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            act()
            status = 0
        except BaseException:
            os.write(output, traceback.format_exc().encode())
        finally:
            os._exit(status)
    return child


def fit(directory: Path, processes: int, seconds: float | None = None) -> float | None:
    """Fits in a child, from the directory's checkpoint if there is one.

    Args:
        directory: The run's directory.
        processes: How many processes train.
        seconds: Kill it after so long, if it is not done by then.

    Returns:
        The seconds that it took, or None if it was killed.

    Raises:
        RuntimeError: If it failed by itself.
    """
    checkpoint = directory / CHECKPOINT
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint.is_file() else []
    if not resume:
        shutil.rmtree(directory, ignore_errors=True)
    start = time.monotonic()
    log = directory.with_suffix(".log")
    child = in_child(lambda: lit_ddpm([*arguments(directory, processes), *resume]), log)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status != 0:
                raise RuntimeError(f"the fit in {directory} ended with status {status}: {log.read_text()[-2000:]}")
            return time.monotonic() - start
        if seconds is not None and time.monotonic() - start > seconds:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same weights, averages and optimizer, bit for bit."""
    a, b = (torch.load(run / CHECKPOINT, weights_only=True) for run in (first, second))
    return all(_equal(a[key], b[key]) for key in ("state_dict", "current_model_state", "optimizer_states", "timesteps"))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def kills(place: Path, count: int, seed: int = 0, processes: tuple[int, ...] = (1, 2)) -> list[tuple[int, bool]]:
    """Kills `count` fits, each once, and ends them.

    Returns:
        For each the step of the checkpoint that it left (0 if none), and whether it ended as if it had not been killed.
    """
    rng, found = random.Random(seed), []
    whole, durations = {}, {}
    for number in range(count):
        share = processes[number % len(processes)]
        if share not in whole:
            whole[share] = place / f"whole_{share}"
            durations[share] = fit(whole[share], share) or 0.0
        run = place / f"killed_{number}"
        while fit(run, share, rng.uniform(0.3, 0.95) * durations[share]) is not None:
            shutil.rmtree(run)  # it was done before; once more
        step = check_file(run / CHECKPOINT) if (run / CHECKPOINT).is_file() else 0
        fit(run, share)
        found.append((step, same(whole[share], run)))
        shutil.rmtree(run)
    return found


def main() -> None:
    """Kills and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    with tempfile.TemporaryDirectory() as place:
        found = kills(Path(place), args.kills)
    equal = sum(ok for _, ok in found)
    print(
        f"{equal} of {len(found)} killed fits ended bit-equal; killed after steps {sorted(step for step, _ in found)}"
    )


if __name__ == "__main__":
    main()
