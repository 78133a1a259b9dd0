"""The settings of the model with a checkpoint: configurations, then the checkpoint, then flags."""

from pathlib import Path

import pytest
from helpers import DIGITS_CONFIG, copy_run, fit_digits

from lit_ddpm import UNet
from lit_ddpm.__main__ import main
from lit_ddpm.likelihood.report import Report

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]


@pytest.fixture
def checkpoint(run, monkeypatch, tmp_path):
    return str(copy_run(run, monkeypatch, tmp_path) / "checkpoints" / "best.ckpt")


@pytest.fixture
def batches(monkeypatch):
    """The batch size of every network call."""
    found, forward = [], UNet.forward

    def count(self, x, *args, **kwargs):
        found.append(len(x))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(UNet, "forward", count)
    return found


@pytest.mark.parametrize(
    ("flags", "num_calls"),
    [
        ([], 16),
        (["--model.sampler.num_steps=3"], 3),
        (["--model.sampler=DPMSolverSampler", "--model.sampler.num_steps=5"], 5),
        (["--config", DIGITS_CONFIG], 16),  # the width, too, is that of the checkpoint
        (["--config", DIGITS_CONFIG, "--model.sampler.num_steps", "4"], 4),
    ],
)
def test_flags_change_the_sampler_of_a_checkpoint(flags, num_calls, checkpoint, batches):
    main(["predict", "--ckpt_path", checkpoint, "--num_samples=2", "--output_dir", "samples", *flags, *QUIET])
    assert batches == [128] * num_calls


def test_flags_change_the_schedule_of_a_checkpoint(checkpoint):
    main(["test", "--ckpt_path", checkpoint, "--model.schedule.num_steps=20", *QUIET])
    (report,) = Path("runs").rglob("bound.json")
    assert Report.load(report).num_calls == 20


def test_guidance_of_a_checkpoint(tmp_path, monkeypatch, batches):
    monkeypatch.chdir(tmp_path)
    fit_digits("--config", "digits_conditional", "--trainer.callbacks=[]")
    batches.clear()
    (last,) = Path("runs").rglob("last.ckpt")
    main(["predict", "--ckpt_path", str(last), "--num_samples=2", "--model.guidance.scale=2", *QUIET])
    assert batches == [256] * 16  # with the label and without


def test_another_network_does_not_fit_the_weights(checkpoint, capsys):
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", checkpoint, "--model.network.width=16", *QUIET])
    assert "the checkpoint does not fit the network" in capsys.readouterr().err
