"""The best variance: a row of every test, and a setting for checkpoints of any fit."""

import torch
from helpers import copy_run, error_of

from lit_ddpm import DDPM
from lit_ddpm.__main__ import main
from lit_ddpm.likelihood.report import Report

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]


def old_checkpoint(path):
    """Returns a copy of a checkpoint without measurements, as a fit without validations writes it."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["lit_ddpm"]["denoiser"]["x0_mse"]
    copy = path.replace("best", "old")
    torch.save(checkpoint, copy)
    return copy


def test_a_checkpoint_of_any_fit_is_tested_and_sampled_with_the_best_variance(run, monkeypatch, tmp_path, capsys):
    directory = copy_run(run, monkeypatch, tmp_path)
    checkpoint = str(directory / "checkpoints" / "best.ckpt")
    measured = DDPM.load_from_checkpoint(checkpoint, weights_only=True).denoiser.x0_mse
    assert measured.shape == (64,)
    assert 0 < float(measured.min()) < float(measured.max()) < 1

    main(["test", "--ckpt_path", checkpoint, *QUIET])
    assert "with the best variance" in capsys.readouterr().out
    fixed = Report.load(directory / "bound.json")
    main(["test", "--ckpt_path", checkpoint, "--model.variance=analytic", *QUIET])
    best = Report.load(directory / "bound.json")
    diffusion = {name: report.terms["diffusion"].value for name, report in {"fixed": fixed, "best": best}.items()}
    limit = fixed.best_variance - fixed.terms["prior"].value - fixed.terms["reconstruction"].value
    assert limit < diffusion["best"] < diffusion["fixed"]  # the errors are those of the validation images
    assert diffusion["best"] - limit < 0.1 * (diffusion["fixed"] - limit)
    assert best.x0_mse == fixed.x0_mse

    main(["predict", "--ckpt_path", checkpoint, "--model.variance=analytic", "--num_samples=2", *QUIET])
    message = error_of(
        capsys,
        ["test", "--ckpt_path", old_checkpoint(checkpoint), "--model.variance=analytic", *QUIET],
    )
    assert "variance = 'analytic' needs the x0-MSE of validation images, which a fit measures" in message


def test_a_fit_with_the_best_variance(run, monkeypatch, tmp_path):
    directory = copy_run(run, monkeypatch, tmp_path)
    last = str(directory / "checkpoints" / "last.ckpt")
    before = torch.load(last, weights_only=True)["lit_ddpm"]["denoiser"]["x0_mse"]
    own = "runs/own"
    settings = ["--model.variance=analytic", f"--trainer.default_root_dir={own}", *QUIET]
    config = ["--config", str(directory / "config.yaml")]
    main(["fit", *config, "--init_from", last, *settings])
    after = DDPM.load_from_checkpoint(f"{own}/checkpoints/best.ckpt", weights_only=True)
    assert after.denoiser.variance == "analytic"
    assert not torch.equal(after.denoiser.x0_mse, before)
    main(["fit", "--ckpt_path", f"{own}/checkpoints/last.ckpt", "--trainer.max_epochs=3"])
    assert float(after.sample(2).abs().max()) < 10
