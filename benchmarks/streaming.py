"""Streaming of many small files: check at the start, speed, memory over two epochs, and resumption within an epoch.

Writes JPEG files of 32x32 pixels in ten folders, unless ``--directory`` has them already. For each start method of
worker processes, a new process sets up an `ImageFolderDataModule` with two workers and reads two epochs. Prints the
seconds of the check, images/s, and the memory of the process and its workers after 10%, 50% and 100% of the first epoch
and after the second. Shared pages count once (sum of proportional set sizes), mapped files such as libraries do not.
Prints as well whether a fit that was interrupted within an epoch ends with the same weights, bit for bit.
"""

import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from torch import Tensor

from benchmarks.common.clock import now, seconds
from benchmarks.common.fits import silent_trainer
from benchmarks.common.report import silence, table
from lit_ddpm import DDPM, LinearSchedule, UNet
from lit_ddpm.data import ImageFolderDataModule

OPTIONS: dict[str, Any] = {
    "--images": {"type": int, "default": 200_000},
    "--directory": {"type": Path, "help": "of the images; a temporary one if absent"},
}
SHARES = (0.1, 0.5, 1.0)  # of the first epoch, where memory is measured
WORKERS = 2
STEPS = 20  # of an epoch of the fits, which are interrupted halfway


class InterruptedFit(Exception):  # noqa: N818
    """The interruption of a fit."""


def write_images(directory: Path, first: int, last: int) -> None:
    """Writes the images ``first`` to ``last - 1`` that a directory lacks."""
    rng = np.random.default_rng(first)
    for number in range(first, last):
        path = directory / f"class_{number % 10}" / f"{number:07d}.jpg"
        if not path.exists():
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            coarse.resize((32, 32)).save(path, quality=85)


def memory_mib() -> float:
    """Returns the memory of this process and its children in MiB: shared pages count once, mapped files not at all."""
    tasks = Path("/proc/self/task").glob("*/children")
    processes = ["self", *(child for task in tasks for child in task.read_text().split())]
    rollups = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes]
    sizes = [re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", rollup, re.MULTILINE) for rollup in rollups]
    return sum(int(kib) for kibs in sizes for kib in kibs) / 1024


def epoch(data: ImageFolderDataModule, loader: Any, number: int) -> Iterator[int]:
    """Reads an epoch and yields the number of images so far after each batch."""
    loader.sampler.set_epoch(number)
    for batches, _ in enumerate(loader, start=1):
        yield batches * data.batch_size


def streamed(directory: Path, **settings: Any) -> ImageFolderDataModule:
    """Makes a data module that streams the images."""
    return ImageFolderDataModule(str(directory), in_memory=False, num_workers=WORKERS, **settings)


def measure(directory: Path) -> dict[str, Any]:
    """Checks the images, reads two epochs and returns the figures."""
    data = streamed(directory)
    figures: dict[str, Any] = {"check": seconds(partial(data.setup, "fit"))}
    loader = data.train_dataloader()
    marks = [max(1, int(share * len(loader))) * data.batch_size for share in SHARES]
    memory: list[float] = []
    start = now()
    for count in epoch(data, loader, 0):
        if count in marks:
            memory += [memory_mib()] * marks.count(count)
    figures["images/s"] = marks[-1] / (now() - start)
    list(epoch(data, loader, 1))
    return figures | {"memory": [*memory, memory_mib()]}


def fit(directory: Path, checkpoint: Path, interrupt: bool = False, resume: bool = False) -> Tensor | None:
    """Fits a small network for two short epochs; returns its weights, or None if it was interrupted."""

    def stop(trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == STEPS + STEPS // 2:
            trainer.save_checkpoint(checkpoint)
            raise InterruptedFit

    lightning.seed_everything(0, verbose=False)
    module = DDPM(UNet(3, width=8, num_blocks=1, multipliers=[1], attention_levels=()), LinearSchedule(num_steps=100))
    callbacks = [LambdaCallback(on_train_batch_end=stop)] if interrupt else []
    trainer = silent_trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=STEPS, callbacks=callbacks, logger=False
    )
    try:
        trainer.fit(module, streamed(directory, image_size=8, batch_size=16), ckpt_path=checkpoint if resume else None)
    except InterruptedFit:
        return None
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def resumes_exactly(directory: Path) -> bool:
    """Interrupts and resumes a fit, and compares its weights with those of an uninterrupted one."""
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place) / "interrupted.ckpt"
        fit(directory, checkpoint, interrupt=True)
        resumed, whole = fit(directory, checkpoint, resume=True), fit(directory, checkpoint)
    return resumed is not None and whole is not None and torch.equal(resumed, whole)


def measure_method(method: str, directory: Path) -> dict[str, Any]:
    """Measures in a process whose workers start by a method."""
    silence()
    torch.set_num_threads(1)  # the others are for the workers
    set_start_method(method, force=True)
    return measure(directory) | {"resumed": "equal" if resumes_exactly(directory) else "not equal"}


def main(args: Namespace) -> dict[str, dict[str, Any]]:
    """Writes the images and measures each start method in a new process."""
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        directory = args.directory or Path(place)
        for number in range(10):
            (directory / f"class_{number}").mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
            firsts = range(0, args.images, 1000)
            lasts = [min(first + 1000, args.images) for first in firsts]
            list(pool.map(partial(write_images, directory), firsts, lasts))
        for method in ("fork", "spawn"):
            print(f"workers by {method}", file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                figures[method] = pool.submit(measure_method, method, directory).result()
    rows = [
        [method, f"{f['check']:.1f}", f"{f['images/s']:,.0f}", *(f"{mib:,.0f}" for mib in f["memory"]), f["resumed"]]
        for method, f in figures.items()
    ]
    places = [f"MiB at {share:.0%}" for share in SHARES]
    header = ["start method", "check, s", "images/s", *places, "MiB after two epochs", "resumed weights"]
    print(f"{args.images:,} images\n")
    print(table(header, rows))
    return figures
