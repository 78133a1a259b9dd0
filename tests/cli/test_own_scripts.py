"""Lightning's own ways: a user's LightningCLI, numbered directories, sweeps, and uploaded checkpoints."""

from pathlib import Path

import pytest
import yaml
from helpers import CONFIGS, FIT_DIGITS, SMALL, fit_digits, read_wandb_artifacts, run_command
from lightning.pytorch.cli import LightningCLI

from lit_ddpm import DDPM
from lit_ddpm.__main__ import main
from lit_ddpm.data import DigitsDataModule, ImageDataModule

TRIAL = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.mark.parametrize(
    ("settings", "args"),
    [
        ({"datamodule_class": DigitsDataModule}, ["--data.batch_size=32"]),
        ({"datamodule_class": ImageDataModule, "subclass_mode_data": True}, ["--data=DigitsDataModule"]),
        ({"datamodule_class": DigitsDataModule}, ["--optimizer=SGD", "--optimizer.lr=0.1"]),
    ],
)
def test_a_users_own_lightning_cli(settings, args):
    network = ["--model.network=UNet", "--model.network.width=8", "--model.network.head_channels=8"]
    cli = LightningCLI(DDPM, **settings, args=["fit", *network, "--model.schedule=LinearSchedule", *TRIAL, *args])
    assert cli.trainer.global_step == 1
    assert cli.model.data.image_shape == (1, 8, 8)


def test_a_second_run_beside_the_first():
    for _ in range(2):
        fit_digits("--number_run=true", "--trainer.callbacks=[]")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits", "digits_2"]
    second = yaml.safe_load(Path("runs/digits_2/config.yaml").read_text())
    assert second["trainer"]["default_root_dir"] == "runs/digits_2"
    main(["fit", "--ckpt_path", "runs/digits_2/checkpoints/last.ckpt", "--trainer.max_epochs=3"])
    assert len(list(Path("runs").iterdir())) == 2


def test_the_run_of_a_sweep_keeps_its_identifier(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "sweep123")
    wandb = ["--config", str(CONFIGS / "logger" / "wandb.yaml"), "--trainer.logger.log_model=true"]
    quick = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--trainer.limit_train_batches=2"]
    done = run_command(*FIT_DIGITS, *SMALL, *wandb, *quick, "--trainer.callbacks=[]")
    assert done.returncode == 0, done.stderr
    (directory,) = Path("runs/digits/wandb").glob("offline-run-*")
    assert directory.name.endswith("-sweep123")
    config = yaml.safe_load(Path("runs/digits/config.yaml").read_text())
    assert config["trainer"]["logger"]["init_args"]["id"] == "sweep123"
    # With log_model=True both checkpoints are uploaded; the newest version called "best" is best.ckpt.
    assert read_wandb_artifacts(Path("runs/digits")) == [("last.ckpt", True), ("best.ckpt", True)]
