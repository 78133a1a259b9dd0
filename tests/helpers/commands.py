"""Arguments of the command line that fit in seconds, and its error messages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_ddpm.__main__ import main
from lit_ddpm.compare import compare

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
DIGITS_CONFIG = str(CONFIGS / "digits.yaml")
FIT_DIGITS = ["fit", "--config", DIGITS_CONFIG]
FIT_CONDITIONAL_DIGITS = [*FIT_DIGITS, "--config", str(CONFIGS / "digits_conditional.yaml")]
SMALL_NETWORK = [
    "--model.network.width=8",
    "--model.network.num_blocks=1",
    "--model.network.head_channels=8",
]
ONE_LEVEL = ["--model.network.multipliers=[1]", "--model.network.attention_levels=[]"]  # fast for small images
FEW_SAMPLES = {
    "extractor": "lit_ddpm.metrics.DigitsFeatures",
    "num_samples": 100,
    "num_val_samples": 70,
    "val_sampler": {"class_path": "lit_ddpm.AncestralSampler", "init_args": {"num_steps": 8}},
    "every_n_epochs": 40,
    "is_splits": 1,
}
CALLBACKS = [  # those of the digits, with few samples
    {"class_path": "lit_ddpm.callbacks.SampleGrid"},
    {"class_path": "lit_ddpm.callbacks.ELBOProfile"},
    {"class_path": "lit_ddpm.callbacks.Performance"},
    {"class_path": "lit_ddpm.callbacks.EMA", "init_args": {"decay": 0.995}},
    {"class_path": "lit_ddpm.callbacks.SampleMetrics", "init_args": FEW_SAMPLES},
]
SMALL = [
    *SMALL_NETWORK,
    *ONE_LEVEL,
    f"--trainer.callbacks={json.dumps(CALLBACKS)}",
    "--model.schedule.num_steps=64",
    "--model.sampler.num_steps=16",
    "--model.evaluation.num_val_timesteps=4",
    "--data.eval_batch_size=360",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
SMALL_COMPARISON = [
    *SMALL_NETWORK,
    *ONE_LEVEL,
    f"--trainer.callbacks={json.dumps(CALLBACKS)}",
    "--model.schedule.num_steps=32",
    "--model.sampler.num_steps=8",
    "--model.evaluation.num_val_timesteps=4",
    "--data.batch_size=16",
    "--data.eval_batch_size=360",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
COMPARED_OBJECTIVES = ["kl", "x0_mse"]


def fit_digits(*args):
    settings = [
        "--trainer.max_epochs=2",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.limit_train_batches=3",
        "--trainer.log_every_n_steps=1",
    ]
    main([*FIT_DIGITS, *SMALL, *settings, *args])


def copy_run(run, monkeypatch, tmp_path) -> Path:
    """Copies a run directory to tmp_path, changes to it, and returns the path of the copy."""
    shutil.copytree(run.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs/digits")


def error_of(capsys, args) -> str:
    """The one line that a command prints before it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lit-ddpm: error: ")
    return last


def run_command(*args, timeout=240):
    """Runs `lit-ddpm` in a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "lit_ddpm", *args], capture_output=True, text=True, timeout=timeout, env=environment
    )


def kill_when(condition, *args) -> None:
    """Starts `lit-ddpm` and kills all its processes as soon as a condition holds."""
    command = [sys.executable, "-m", "lit_ddpm", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with Path("log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, Path("log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_here(run, args, lock, environment):
    """Replaces `Run._run_process`: a command of a comparison in this process."""
    run.files.log.touch()
    main(args)


def compare_digits(directory, objectives=COMPARED_OBJECTIVES, **kwargs):
    return compare([DIGITS_CONFIG], objectives, output_dir=directory, overrides=SMALL_COMPARISON, **kwargs)
