"""The dashboard in W&B, in TensorBoard and in files."""

import csv
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import CONFIGS, FIT_DIGITS, SMALL, digits, error_of, read_wandb_run, run_command, tiny_module, trainer
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_ddpm.__main__ import main
from lit_ddpm.callbacks import SampleGrid
from lit_ddpm.cli.app import _complete_wandb_loggers

WANDB = ["--config", str(CONFIGS / "logger" / "wandb.yaml")]
QUICK = [
    *SMALL,
    "--trainer.max_epochs=40",
    "--trainer.limit_train_batches=2",
    "--trainer.log_every_n_steps=10",
    "--data.batch_size=32",
]
PICTURES = {"sample/grid", "sample/trajectory", "val/elbo_terms", "val/elbo_rate", "val/rate_distortion"}
TERMS = {"val/bpd", "val/bpd_prior", "val/bpd_diffusion", "val/bpd_reconstruction", "val/bpd_se_noise"}


@pytest.fixture(scope="module", params=[1, 2])
def wandb_run(request, tmp_path_factory):
    """The run directory of a fit with an offline W&B run, on one process and on two."""
    place = tmp_path_factory.mktemp("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "TORCH_HOME": str(place)}
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"] * (request.param == 2)
    command = [sys.executable, "-m", "lit_ddpm", *FIT_DIGITS, *WANDB, *QUICK, *two]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return place / "runs" / "digits"


def test_an_offline_wandb_run_holds_the_dashboard(wandb_run):
    rows, config, summaries = read_wandb_run(wandb_run)
    assert all("trainer/global_step" in row for row in rows)
    keys = {key for row in rows for key in row}
    assert TERMS | {"sample/fid_digits", "train/kl", "train/kl_from_x0_mse", "train/form_gap"} <= keys
    assert {"perf/images_per_s", "perf/outside_network", "perf/peak_memory_gib"} <= keys

    # Each key once per step, also on two processes.
    for key in keys - {"trainer/global_step", "epoch", "_step", "_runtime", "_timestamp"}:
        steps = [row["trainer/global_step"] for row in rows if key in row]
        assert len(steps) == len(set(steps)), key
    assert [row["trainer/global_step"] for row in rows if "val/bpd" in row] == [39, 79]
    assert [row["trainer/global_step"] for row in rows if "sample/fid_digits" in row] == [39, 79]

    files = next(wandb_run.glob("wandb/offline-run-*")) / "files"
    for key in PICTURES | {"objective_weights"}:
        with_image = [row for row in rows if f"{key}/filenames" in row]
        steps = [row["trainer/global_step"] for row in with_image]
        assert steps == ([0] if key == "objective_weights" else [39, 79])
        row = with_image[-1]
        picture = np.asarray(Image.open(files / row[f"{key}/filenames"][0]).convert("RGB"))
        assert picture.dtype == np.uint8
        assert 20 < picture.mean() < 254
        assert row[f"{key}/captions"][0]
    row = [row for row in rows if "val/elbo_profile/path" in row][-1]
    written = json.loads((files / row["val/elbo_profile/path"]).read_text())
    assert written["columns"] == ["t", "kl", "kl_training", "rate", "rmse", "weight", "kl_weight"]
    assert np.array(written["data"], dtype=float).shape == (48, 7)

    assert config["names"] == {
        "objective": "X0MSE",
        "weighting": "KLWeighting",
        "parametrization": "VParametrization",
        "schedule": "LogSNRSchedule",
    }
    assert config["config"]["trainer"]["max_epochs"] == 40
    assert config["sample_metrics"]["val"]["weights"] == "averaged"
    assert summaries["val/bpd"] == ("trainer/global_step", "min")
    assert summaries["sample/fid_digits"] == ("trainer/global_step", "min")


def test_later_commands_on_a_run_use_its_wandb_run(wandb_run):
    logger = yaml.safe_load((wandb_run / "config.yaml").read_text())["trainer"]["logger"]["init_args"]
    (path,) = wandb_run.glob("wandb/offline-run-*/*.wandb")
    assert path.stem == f"run-{logger['id']}"


def test_an_identifier_is_not_read_as_a_number(monkeypatch):
    """The hexadecimal digits 95e998108491 are infinity in YAML."""
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(hex="95e998108491" + 20 * "0"))
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(id=None, save_dir="."))
    _complete_wandb_loggers(Namespace(logger=logger, default_root_dir="."))
    assert isinstance(yaml.safe_load(logger.init_args.id), str)


def test_a_missing_wandb_login_is_one_sentence(monkeypatch):
    """In a process without a session of W&B, which would keep the settings that it started with."""
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("NETRC", "no_netrc")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    done = run_command(*FIT_DIGITS, *WANDB, *QUICK)
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2
    assert message.startswith("lit-ddpm: error: ")
    assert "wandb login" in message
    assert "WANDB_MODE=offline" in message
    assert not Path("runs/digits/metrics.csv").exists()


@pytest.mark.parametrize("tensorboard", [True, False])
def test_tensorboard_and_files_work_without_wandb(monkeypatch, tensorboard):
    monkeypatch.setitem(sys.modules, "wandb", None)
    main([*FIT_DIGITS, *QUICK, *([] if tensorboard else ["--trainer.logger=[]"])])
    run = Path("runs/digits")
    names = {path.name for path in (run / "profile").iterdir()}
    for stem in ("elbo_terms", "elbo_rate", "rate_distortion"):
        assert f"val_{stem}_0000080.png" in names
    assert {"objective_weights.png", "val_elbo_profile_0000080.csv"} <= names
    with (run / "metrics.csv").open() as file:
        columns = set(next(csv.reader(file)))
    assert TERMS | {"sample/fid_digits", "perf/images_per_s"} <= columns
    assert (run / "tensorboard").exists() == tensorboard
    if tensorboard:
        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        assert PICTURES | {"objective_weights"} <= set(events.Tags()["images"])
        assert TERMS | {"sample/fid_digits"} <= set(events.Tags()["scalars"])
        assert [event.step for event in events.Scalars("val/bpd")] == [39, 79]
        assert [event.step for event in events.Images("val/elbo_terms")] == [39, 79]


def test_a_missing_wandb_names_its_installation(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = error_of(capsys, [*FIT_DIGITS, *WANDB, *QUICK])
    assert message == 'lit-ddpm: error: WandbLogger needs wandb: pip install "lit-ddpm[wandb]".'


class Pictures(Logger):
    """A logger of a user, with the method of Lightning's W&B logger."""

    name, version = "pictures", 0

    def __init__(self, method):
        super().__init__()
        self.seen = {}
        setattr(self, method, self.keep)

    def keep(self, key, images, step=None, **kwargs):
        self.seen[key] = (images[0].size, step)

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


@pytest.mark.parametrize("method", ["log_image", "log_images"])
def test_any_logger_with_a_method_for_images_receives_them(method):
    logger = Pictures(method)
    run = trainer(callbacks=[SampleGrid(num_images=4)], logger=logger, max_epochs=1, limit_val_batches=1)
    run.fit(tiny_module(), digits())
    assert {name: step for name, (_, step) in logger.seen.items()} == {"sample/grid": 3, "sample/trajectory": 3}
