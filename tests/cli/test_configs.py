"""The shipped configurations run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import (
    CONFIGS,
    FIT_CONDITIONAL_DIGITS,
    SHARDS,
    SMALL,
    compile_without_code,
    write_cifar,
    write_image_folder,
    write_mnist,
)
from PIL import Image

from lit_ddpm.__main__ import main
from lit_ddpm.metrics.inception import InceptionFeatures


class SmallInception(torch.nn.Module):
    """A network with the input and output of Inception."""

    def forward(self, images):
        assert images.shape[1] == 3
        assert images.dtype == torch.uint8
        features = images.float().mean((2, 3))
        return features, features


@pytest.mark.parametrize("config", sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml")))
def test_every_shipped_config_runs(config, monkeypatch):
    """One without data is an overlay on that whose name it begins with, else on digits.yaml."""
    content = yaml.safe_load((CONFIGS / config).read_text())
    base = []
    if "data" not in content:
        named = CONFIGS / f"{Path(config).stem.split('_')[0]}.yaml"
        named = named if named.exists() else CONFIGS / "digits.yaml"
        base, content = ["--config", str(named)], yaml.safe_load(named.read_text())
    name = content["data"].get("init_args", {}).get("dataset", "")
    small = ["--data.eval_batch_size=8"]
    if name:
        write_mnist("data") if name == "MNIST" else write_cifar("data", monkeypatch)
        monkeypatch.setattr(InceptionFeatures, "load", lambda self: SmallInception())
        small += ["--model.network.width=32", "--data.batch_size=2", "--data.eval_batch_size=2", "--data.val_size=10"]
    if "fsdp" in config:
        if not SHARDS:
            pytest.skip("torch 2.7 cannot shard weights")
        small += ["--trainer.devices=1", "--trainer.strategy.data_parallel_size=1", "--trainer.accelerator=cpu"]
    if config.startswith("images"):
        write_image_folder("my_images", count=100)
        small += ["--data.root=my_images", "--data.image_size=8"]
    if "compile" in config:
        monkeypatch.setattr(torch.nn.Module, "compile", compile_without_code)
    if config == "cifar10_hour.yaml":  # compiled as by trainer/compile.yaml, and a large network takes half a minute
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    main(["fit", *base, "--config", str(CONFIGS / config), *small, "--trainer.fast_dev_run=true"])


def test_conditional_digits_draw_a_column_per_class():
    settings = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=0"]
    main([*FIT_CONDITIONAL_DIGITS, *SMALL, *settings])
    run = Path("runs/digits_conditional")
    (grid,) = (run / "samples").glob("step*")
    picture = Image.open(grid)
    assert picture.size[0] == 10 * (32 + 2) + 2
    assert "guidance 2" in picture.text["Description"]
    main(["predict", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--num_samples=12"])
    archive = np.load(run / "predict" / "samples.npz")
    assert archive["arr_1"].tolist() == [*range(10), 0, 1]
    assert json.loads((run / "predict" / "samples.json").read_text())["guidance"] == 2.0
