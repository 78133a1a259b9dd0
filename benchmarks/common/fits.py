"""Short fits: of shipped configurations in a separate process, and of modules with a silent Trainer."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning

from lit_ddpm import DDPM

CONFIGS = Path(__file__).parents[2] / "configs"


def configured(name: str, *options: str) -> Any:
    """Returns ``model``, ``trainer`` and ``datamodule`` of a configuration, by name or file, with further options.

    The network is compiled, or in channels-last memory, if the configuration has the callback `Compile` or
    `ChannelsLast`.
    """
    from lit_ddpm.callbacks import ChannelsLast, Compile
    from lit_ddpm.cli.app import DDPMCLI  # not at the start-up of `LitDDPM`, which is timed

    cli = DDPMCLI(["--config", name, "--trainer.logger=false", *options], run=False)
    for callback in cli.trainer.callbacks:
        if isinstance(callback, ChannelsLast | Compile):
            callback.setup(cli.trainer, cli.model, "fit")
    return cli


def shipped_module(name: str, *options: str) -> DDPM:
    """Makes the module of a shipped configuration, with further options of the command."""
    module: DDPM = configured(name, *options).model
    return module


def fit(name: str, directory: Path, options: dict[str, Any]) -> dict[str, list[float]]:
    """Runs ``lit-ddpm fit`` in a separate process and returns the values of each logged ``perf/`` key.

    Args:
        name: The configuration, by name or file.
        directory: The run directory.
        options: Further options of the command, such as ``{"trainer.max_steps": 32}``.

    Raises:
        RuntimeError: If the command fails.
    """
    values = {"trainer.default_root_dir": str(directory), **options}
    command = [sys.executable, "-m", "lit_ddpm", "fit", "--config", name]
    command += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {finished.returncode}: {finished.stderr[-2000:]}")
    with (directory / "metrics.csv").open(newline="") as log:
        rows = list(csv.DictReader(log))
    keys = [key for key in rows[0] if key.startswith("perf/")]
    return {key: [float(row[key]) for row in rows if row[key]] for key in keys}


def silent_trainer(**settings: Any) -> lightning.Trainer:
    """Makes a Trainer without validation, checkpoints, progress bar and model summary."""
    return lightning.Trainer(
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
