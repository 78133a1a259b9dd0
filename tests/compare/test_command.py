"""`lit-ddpm compare` from its configurations to its report."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from helpers import COMPARED_OBJECTIVES, DIGITS_CONFIG, SMALL_COMPARISON, compare_digits, kill_when, read_csv

from lit_ddpm.__main__ import main
from lit_ddpm.compare import compare
from lit_ddpm.diffusion.ledger import Report
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory


def rows(directory):
    return {row["trained_with"]: row for row in read_csv(directory / "table.csv")}


def without_timing(directory):
    return {arm: {k: v for k, v in row.items() if "images/s" not in k} for arm, row in rows(directory).items()}


def test_arms_differ_in_their_objective_alone(finished):
    configs = [yaml.safe_load((finished / arm / "seed_0" / "config.yaml").read_text()) for arm in COMPARED_OBJECTIVES]
    objectives = [config["model"]["init_args"].pop("objective") for config in configs]
    assert objectives[0] == {"class_path": "lit_ddpm.PosteriorKL", "init_args": {"decoder": None}}
    assert objectives[1]["init_args"]["weighting"]["class_path"] == "lit_ddpm.UniformWeighting"
    for config in configs:
        config["trainer"].pop("default_root_dir")
    assert configs[0] == configs[1]


def test_arms_share_weights_data_timesteps_and_noise(finished):
    first = []
    for arm in COMPARED_OBJECTIVES:
        first.append(next(row for row in read_csv(finished / arm / "seed_0" / "metrics.csv") if row["train/loss"]))
    assert first[0]["train/kl"] == first[1]["train/kl"]
    assert first[0]["train/x0_mse"] == first[1]["train/x0_mse"]
    assert first[0]["train/loss"] != first[1]["train/loss"]


def test_the_table_holds_the_results_of_the_runs(finished):
    table = rows(finished)
    assert list(table) == COMPARED_OBJECTIVES
    for arm in COMPARED_OBJECTIVES:
        ledger = json.loads((finished / arm / "seed_0" / "ledger.json").read_text())
        (line,) = (finished / arm / "seed_0" / "sample_metrics.jsonl").read_text().splitlines()[-1:]
        assert json.loads(line)["command"] == "test"
        assert float(table[arm]["bits/dim"]) == ledger["terms"]["total"]["value"]
        assert float(table[arm]["bits/dim_error"]) == ledger["terms"]["total"]["se_images"]
        assert float(table[arm]["fid_digits"]) == json.loads(line)["metrics"]["fid"]
        assert float(table[arm]["images/s"]) > 0
        # With the posterior variance the T - 1 KL terms are weighted x0-MSEs.
        nats = ledger["terms"]["diffusion"]["value"] * math.log(2)
        assert float(table[arm]["measured_with_kl"]) == pytest.approx(nats / 31, rel=1e-6)
        x0_mse = ledger["x0_mse"][1:]
        assert float(table[arm]["measured_with_x0_mse"]) == pytest.approx(sum(x0_mse) / 31, rel=1e-6)


def test_the_report_is_one_file_with_everything(finished):
    html = (finished / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 2 + 3 + 1  # samples, overlays, one audit for both
    assert not re.search(r'(src|href)="(?!data:)', html)
    for text in (
        "lit-ddpm compare --config",
        "kl, seed 0",
        "PosteriorKL",
        "float64",
        "Cross-evaluation",
        *COMPARED_OBJECTIVES,
    ):
        assert text in html
    assert (finished / "audit_kl.png").is_file()


@pytest.mark.usefixtures("in_this_process")
def test_a_resumed_comparison_is_the_same(finished, monkeypatch, tmp_path):
    def killed(self):
        if self.current_epoch == 1 and self.objective.__class__.__name__ == "X0MSE":
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(DDPM, "on_train_epoch_start", killed)
        with pytest.raises(RuntimeError, match="killed"):
            compare_digits(tmp_path / "runs")
    with pytest.raises(ValueError, match="is not empty: resume the comparison there with --resume"):
        compare_digits(tmp_path / "runs")
    before = (tmp_path / "runs" / "kl" / "seed_0" / "ledger.json").stat().st_mtime_ns
    found = compare_digits(tmp_path / "runs", resume=True)
    assert (tmp_path / "runs" / "kl" / "seed_0" / "ledger.json").stat().st_mtime_ns == before
    assert without_timing(tmp_path / "runs") == without_timing(finished)
    assert found.columns()["bits/dim"]["kl"].mean == float(rows(finished)["kl"]["bits/dim"])
    with pytest.raises(ValueError, match="seed_0 contains a run of another configuration"):
        compare(
            [DIGITS_CONFIG],
            COMPARED_OBJECTIVES,
            output_dir=tmp_path / "runs",
            resume=True,
            overrides=[*SMALL_COMPARISON, "--data.batch_size=32"],
        )


def test_a_report_can_be_read_again(finished):
    report = Report.load(finished / "kl" / "seed_0" / "ledger.json")
    report.save(finished / "again.json")
    assert Report.load(finished / "again.json") == report


def test_a_killed_comparison_resumes(finished):
    """With the results of one that was left alone."""
    compare = ["compare", "--config", DIGITS_CONFIG, "--objectives", "kl", *SMALL_COMPARISON, "--output_dir", "killed"]
    run = RunDirectory(Path("killed/kl/seed_0"))
    moments = [run.path.exists, run.last_checkpoint.exists, lambda: any(run.predictions.glob("*.png"))]
    for moment in moments:
        if not moment():  # a kill may come later than it was meant
            kill_when(moment, *compare, *(["--resume"] if Path("killed").exists() else []))
    main([*compare, "--resume"])
    (killed,), expected = read_csv("killed/table.csv"), read_csv(finished / "table.csv")[0]
    shared = [key for key in killed if "images/s" not in key]
    assert {key: killed[key] for key in shared} == {key: expected[key] for key in shared}
    steps = [int(row["step"]) for row in read_csv(run.metrics) if row["train/loss"]]
    assert steps == sorted(set(steps))
