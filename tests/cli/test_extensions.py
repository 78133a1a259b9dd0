"""A user's classes, named by their import path."""

from pathlib import Path

import torch
from helpers import FIT_DIGITS, SMALL, read_csv, run_command

from lit_ddpm.__main__ import main

EXTRACTOR = """
trainer:
  callbacks:
    - class_path: lit_ddpm.callbacks.SampleMetrics
      init_args:
        extractor:
          class_path: helpers.Brightness
          init_args: {bins: 3}
        num_val_samples: 32
        val_sampler: {class_path: lit_ddpm.AncestralSampler, init_args: {num_steps: 4}}
"""


def test_a_user_defined_extractor_in_yaml():
    Path("extractor.yaml").write_text(EXTRACTOR)
    main(
        [
            *FIT_DIGITS,
            *SMALL,
            "--config",
            "extractor.yaml",
            "--trainer.max_epochs=20",
            "--trainer.limit_train_batches=2",
        ]
    )
    values = [
        row["sample/fid_brightness"] for row in read_csv("runs/digits/metrics.csv") if row["sample/fid_brightness"]
    ]
    assert len(values) == 1
    assert "sample/is_brightness" not in read_csv("runs/digits/metrics.csv")[0]


MY_PACKAGE = """
import torch
from torch import nn
from lit_ddpm import DDPM, Objective, VParametrization, LogSNRSchedule


class MyNetwork(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x_t, t):
        time = (t / 20).to(x_t)[:, None, None, None].expand_as(x_t)
        return self.net(torch.cat([x_t, time], dim=1))


class Huber(Objective):
    def __init__(self, delta: float = 1.0):
        self.delta = delta

    def __call__(self, denoiser, pred):
        return nn.functional.huber_loss(pred.x0_hat, pred.x_0, reduction="none", delta=self.delta).flatten(1).mean(1)


class MyDDPM(DDPM):
    def __init__(self, width: int = 8, delta: float = 1.0):
        super().__init__(
            network=MyNetwork(width),
            schedule=LogSNRSchedule(num_steps=20),
            parametrization=VParametrization(),
            objective=Huber(delta),
        )

    def unpack_batch(self, batch):
        images, labels = batch
        return images.flip(-1), {}
"""


def test_a_subclass_in_another_package_runs(monkeypatch, tmp_path):
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
    done = run_command("fit", "--model=my_package.MyDDPM", "--model.width=4", *few, "--trainer.default_root_dir=mine")
    assert done.returncode == 0, done.stderr
    checkpoint = Path("mine/checkpoints/last.ckpt")
    done = run_command("test", "--ckpt_path", str(checkpoint), "--data.eval_batch_size=360")
    assert done.returncode == 0, done.stderr
    assert "bits/dim" in done.stdout
    assert torch.load(checkpoint, weights_only=True)["state_dict"]["denoiser.network.net.0.weight"].shape[0] == 4

    monkeypatch.syspath_prepend(str(tmp_path))
    import my_package

    loaded = my_package.MyDDPM.load_from_checkpoint(checkpoint, weights_only=True)
    assert loaded.sample(2).shape == (2, 1, 8, 8)
    assert isinstance(loaded.objective, my_package.Huber)
