"""The command on two processes."""

import json
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, FIT_DIGITS, SHARDS, SMALL, run_command

from lit_ddpm.__main__ import main

TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu"]
SHORT = [*SMALL, "--trainer.max_epochs=3", "--trainer.limit_train_batches=2", "--data.batch_size=32"]
SHORT += ["--trainer.check_val_every_n_epoch=2"]  # the last epoch is not validated


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """The directory of a fit with strategy ddp, which starts the second process itself."""
    place = tmp_path_factory.mktemp("two") / "run"
    directory = f"--trainer.default_root_dir={place}"
    done = run_command(*FIT_DIGITS, *SHORT, *TWO, "--trainer.strategy=ddp", directory)
    assert done.returncode == 0, done.stderr
    return place


def test_two_processes_measure_the_bound_of_one(run_of_two):
    test = ["test", "--ckpt_path", str(run_of_two / "checkpoints" / "best.ckpt"), "--data.eval_batch_size=77"]
    test += ["--trainer.callbacks=[]"]  # the bound only
    done = run_command(*test, *TWO, "--trainer.strategy=ddp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("per-pixel histogram") == 1
    two = json.loads((run_of_two / "bound.json").read_text())
    main([*test, "--trainer.devices=1", "--trainer.strategy=auto"])
    one = json.loads((run_of_two / "bound.json").read_text())
    assert two["terms"]["total"]["value"] == pytest.approx(one["terms"]["total"]["value"], abs=1e-5)


@pytest.mark.skipif(not SHARDS, reason="torch 2.7 cannot shard weights")
def test_sharded_training_equals_unsharded_training(run_of_two):
    """Only rank 0 draws grids, so the ranks call the network unequally often."""
    done = run_command(*FIT_DIGITS, *SHORT, "--config", str(CONFIGS / "trainer" / "fsdp.yaml"), *TWO)
    assert done.returncode == 0, done.stderr
    assert {f"step_{step:07d}.png" for step in (4, 6)} <= {p.name for p in Path("runs/digits/samples").iterdir()}
    sharded = torch.load("runs/digits/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    whole = torch.load(run_of_two / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    assert sharded.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], rtol=0, atol=1e-6)
