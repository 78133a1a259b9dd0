"""Networks that get log SNR: continuous time in training, any number of steps in tests."""

from pathlib import Path

import pytest
import torch
from helpers import copy_run, error_of, read_csv

from lit_ddpm import DDPM
from lit_ddpm.__main__ import main
from lit_ddpm.likelihood.report import Report
from lit_ddpm.training import evaluation

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]
FEW = [*QUIET, "--data.eval_batch_size=32", "--trainer.limit_test_batches=2"]


@pytest.fixture
def continuous(run, monkeypatch, tmp_path):
    """A run of two epochs in continuous time, from the configuration of the digits."""
    directory = copy_run(run, monkeypatch, tmp_path)
    main(
        [
            *("fit", "--config", str(directory / "config.yaml"), "--trainer.default_root_dir=runs/continuous"),
            *(
                "--model.network.time=log_snr",
                "--model.timesteps=AdaptiveTimesteps",
                "--model.timesteps.continuous=true",
                "--trainer.max_epochs=2",
                *QUIET,
            ),
        ]
    )
    return "runs/continuous/checkpoints/last.ckpt"


def test_any_number_of_steps_from_the_command(continuous, capsys):
    totals = []
    for num_steps in (16, 64, 150):
        main(["test", "--ckpt_path", continuous, f"--model.schedule.num_steps={num_steps}", *QUIET])
        totals.append(Report.load(Path("runs/continuous/bound.json")))
    assert [report.num_calls for report in totals] == [16, 64, 150]
    assert totals[0].terms["total"].value > totals[1].terms["total"].value > totals[2].terms["total"].value
    capsys.readouterr()
    settings = ["--model.variance=analytic", "--model.schedule.num_steps=20", "--model.sampler.num_steps=10"]
    main(["test", "--ckpt_path", continuous, *settings, *QUIET])  # measured on 64 steps
    assert "with infinite steps" in capsys.readouterr().out
    message = error_of(capsys, ["test", "--ckpt_path", continuous, "--model.schedule.log_snr_start=12", *QUIET])
    assert "has a log SNR of 12 to -6, but the network was trained on" in message


def test_the_exact_likelihood_from_the_command(continuous, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "FLOW_STEPS", 4)
    main(["test", "--ckpt_path", continuous, "--exact", "--model.schedule.num_steps=20", *FEW])
    report = Report.load(Path("runs/continuous/bound.json"))
    bound, entries = report.terms["total"].value, report.likelihood
    assert bound - entries["likelihood"].value == pytest.approx(entries["gap"].value, abs=1e-9)
    assert abs(entries["solver_error"].value) > 0
    assert "exact likelihood" in capsys.readouterr().out
    (line,) = [row for row in read_csv("runs/continuous/metrics.csv") if row.get("test/bpd_likelihood")]
    assert float(line["test/bpd_gap"]) == pytest.approx(entries["gap"].value, rel=1e-5)
    main(["test", "--ckpt_path", continuous, "--model.schedule.num_steps=20", *FEW])
    assert Report.load(Path("runs/continuous/bound.json")).likelihood is None


def test_an_exact_likelihood_of_single_timesteps_is_refused(run, monkeypatch, tmp_path, capsys):
    checkpoint = str(copy_run(run, monkeypatch, tmp_path) / "checkpoints" / "best.ckpt")
    message = error_of(capsys, ["test", "--ckpt_path", checkpoint, "--exact", "--model.network.time=t", *QUIET])
    assert "the exact likelihood needs a network of continuous time, time = 'log_snr'" in message
    settings = ["--model.schedule=LinearSchedule", "--model.schedule.zero_terminal_snr=true"]
    message = error_of(capsys, ["test", "--ckpt_path", checkpoint, "--exact", *settings, *QUIET])
    assert "log SNR of" in message


def test_a_continuous_fit_resumes_with_its_losses(continuous):
    state = torch.load(continuous, weights_only=True)["lit_ddpm"]["timesteps"]["AdaptiveTimesteps"]["mean_square"]
    model = DDPM.load_from_checkpoint(continuous, weights_only=True)
    assert torch.equal(model.timesteps.state_dict()["mean_square"], state)
    assert bool((state > 0).all())
    main(["fit", "--ckpt_path", continuous, "--trainer.max_epochs=3"])


def test_a_stepwise_network_on_another_schedule_warns(run, monkeypatch, tmp_path):
    checkpoint = copy_run(run, monkeypatch, tmp_path) / "checkpoints" / "best.ckpt"
    with pytest.warns(UserWarning, match="trained with another schedule of 64 steps"):
        main(
            ["test", "--ckpt_path", str(checkpoint), "--model.network.time=t", "--model.schedule.num_steps=20", *QUIET]
        )
