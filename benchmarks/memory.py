"""Peak memory of ``fit`` with and without FID, KID and IS.

Fits ``configs/digits.yaml`` with its bundled features, and ``configs/cifar10.yaml`` on random images with an Inception
of random weights, for two short epochs with a validation after each; with `SampleMetrics` and without. Prints what
`Performance` logs: the memory of the GPU if there is one, else of the process.
"""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.common.fits import fit
from benchmarks.common.metrics import random_inception_settings
from benchmarks.common.report import table

OPTIONS: dict[str, Any] = {}


def options(name: str, place: Path, measured: bool) -> dict[str, Any]:
    """Returns the options of a short ``fit``, with `SampleMetrics` or without."""
    data: dict[str, Any] = {}
    if name == "digits":
        metrics = {"extractor": "lit_ddpm.metrics.DigitsFeatures", "num_val_samples": 256}
    else:
        data = {"data": "benchmarks.common.images.RandomDataModule", "data.batch_size": 128}
        data["data.num_images"] = 500  # Inception takes a minute for them
        inception = random_inception_settings(place / "inception.pth")
        extractor = {"class_path": "lit_ddpm.metrics.InceptionFeatures", "init_args": inception}
        sampler = {"class_path": "lit_ddpm.DDIMSampler", "init_args": {"num_steps": 2}}
        metrics = {"extractor": extractor, "num_val_samples": 128, "val_sampler": sampler}
    callbacks: list[Any] = [{"class_path": f"lit_ddpm.callbacks.{callback}"} for callback in ("EMA", "Performance")]
    if measured:
        metrics["cache_dir"] = str(place)
        callbacks.append({"class_path": "lit_ddpm.callbacks.SampleMetrics", "init_args": metrics})
    return data | {
        "model.evaluation.num_val_timesteps": 2,
        "trainer.callbacks": callbacks,
        "trainer.max_epochs": 2,
        "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 2,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_checkpointing": False,
    }


def main(args: Namespace) -> dict[str, list[float]]:
    """Fits with and without the metrics."""
    figures: dict[str, list[float]] = {"digits": [], "cifar10": []}
    with tempfile.TemporaryDirectory() as place:
        for name, peaks in figures.items():
            for measured in (False, True):
                directory = Path(place) / f"{name}_{measured}"
                logged = fit(name, directory, options(name, Path(place), measured))
                peaks.append(max(logged["perf/peak_memory_gib"]))
    rows = [[f"`{name}`", f"{a:.2f}", f"{b:.2f}", f"{b / a:.3f}"] for name, (a, b) in figures.items()]
    print(table(["", "without FID, GiB", "with FID, GiB", "ratio"], rows))
    return figures
