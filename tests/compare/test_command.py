"""`lit-ddpm compare` from its configurations to its report."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from helpers import (
    COMPARED_OBJECTIVES,
    DIGITS_CONFIG,
    ROOT,
    SMALL_COMPARISON,
    blocks,
    compare_digits,
    error_of,
    kill_when,
    read_csv,
    read_wandb_artifacts,
    read_wandb_run,
    text_of,
)
from PIL import Image

from lit_ddpm.__main__ import main
from lit_ddpm._internal.files import read_arrays
from lit_ddpm.compare import collect, compare, prepare
from lit_ddpm.compare.runs import Run
from lit_ddpm.compare.variants import resolve_models
from lit_ddpm.training.run_directory import RunDirectory

TABLES = ("table.csv", "differences.csv")
KL_AND_X0_MSE = ["--config", DIGITS_CONFIG, "--objectives", ",".join(COMPARED_OBJECTIVES), *SMALL_COMPARISON]


def table_of(directory):
    return {row["trained_with"]: row for row in read_csv(directory / "table.csv")}


def assert_same_tables(directory, other):
    for table in TABLES:
        assert (directory / table).read_bytes() == (other / table).read_bytes()


@pytest.fixture
def copied(finished, monkeypatch):
    """Replaces the commands of a comparison by copies of the finished one; returns the commands by run."""
    executed = []

    def process(self, args, lock, environment):
        executed.append((self.name, args[0]))
        self.files.log.write_text("out of memory\n")
        if (self.variant.name, args[0]) in failing:
            raise subprocess.CalledProcessError(1, args)
        source = finished / self.variant.name / "seed_0"
        shutil.copytree(source, self.files.path, ignore=lambda *_: {"variant.yaml", "seconds.json"}, dirs_exist_ok=True)

    failing = set()
    monkeypatch.setattr(Run, "_run_process", process)
    process.executed, process.failing = executed, failing
    return process


def test_variants_differ_in_their_objective_alone(finished):
    configs = [
        yaml.safe_load((finished / variant / "seed_0" / "config.yaml").read_text()) for variant in COMPARED_OBJECTIVES
    ]
    objectives = [config["model"]["init_args"].pop("objective") for config in configs]
    assert objectives[0] == {"class_path": "lit_ddpm.PosteriorKL", "init_args": {"decoder": None}}
    assert objectives[1]["init_args"]["weighting"]["class_path"] == "lit_ddpm.UniformWeighting"
    for config in configs:
        config["trainer"].pop("default_root_dir")
    assert configs[0] == configs[1]


def test_variants_share_weights_data_timesteps_and_noise(finished):
    first = []
    for variant in COMPARED_OBJECTIVES:
        first.append(next(row for row in read_csv(finished / variant / "seed_0" / "metrics.csv") if row["train/loss"]))
    assert first[0]["train/kl"] == first[1]["train/kl"]
    assert first[0]["train/x0_mse"] == first[1]["train/x0_mse"]
    assert first[0]["train/loss"] != first[1]["train/loss"]


def test_the_table_holds_the_results_of_the_runs(finished):
    table = table_of(finished)
    assert list(table) == COMPARED_OBJECTIVES
    for variant in COMPARED_OBJECTIVES:
        report = json.loads((finished / variant / "seed_0" / "bound.json").read_text())
        (line,) = (finished / variant / "seed_0" / "sample_metrics.jsonl").read_text().splitlines()[-1:]
        assert json.loads(line)["command"] == "test"
        assert float(table[variant]["bits/dim"]) == report["terms"]["total"]["value"]
        assert float(table[variant]["bits/dim_error"]) == pytest.approx(report["terms"]["total"]["se_images"], rel=1e-9)
        assert float(table[variant]["fid_digits"]) == json.loads(line)["metrics"]["fid"]
        # With the posterior variance the T - 1 KL terms are weighted x0-MSEs.
        nats = report["terms"]["diffusion"]["value"] * math.log(2)
        assert float(table[variant]["measured_with_kl"]) == pytest.approx(nats / 31, rel=1e-6)
        x0_mse = report["x0_mse"][1:]
        assert float(table[variant]["measured_with_x0_mse"]) == pytest.approx(sum(x0_mse) / 31, rel=1e-6)


def test_the_report_is_one_file_with_everything(finished):
    html = (finished / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 2 + 3 + 1  # samples, curves, gradients
    assert not re.search(r'(src|href)="(?!data:)', html)
    for text in (
        "lit-ddpm compare --config",
        "kl, seed 0",
        "PosteriorKL",
        "float64",
        "Each model under each objective",
        "<b>kl</b>: bits/dim ",
        "The objective of <b>kl</b> is the bound itself",
        *COMPARED_OBJECTIVES,
    ):
        assert text in html
    figures = {"audit_kl", "audit_x0_mse", "factors", "profile", "rate_distortion", "gradients"}
    assert {path.stem for path in finished.glob("*.png")} == figures


def test_differences_are_paired(finished):
    images = [read_arrays(finished / variant / "seed_0" / "bound.npz")["total"] for variant in COMPARED_OBJECTIVES]
    difference = images[1] - images[0]
    row = next(row for row in read_csv(finished / "differences.csv") if row["column"] == "bits/dim")
    assert (row["trained_with"], row["minus"]) == ("kl", "x0_mse")
    assert float(row["difference"]) == pytest.approx(-difference.mean(), rel=1e-9)
    assert float(row["error"]) == pytest.approx(difference.std(ddof=1) / math.sqrt(360), rel=1e-6)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_resumed_comparison_repeats_no_work(finished, copied, jobs, tmp_path, capsys):
    copied.failing.add(("x0_mse", "gradients"))
    found = compare_digits(tmp_path / "runs", jobs=jobs)
    assert found.missing == {"x0_mse, seed 0": tmp_path / "runs" / "x0_mse" / "seed_0" / "log.txt"}
    assert list(table_of(tmp_path / "runs")) == ["kl"]
    assert "[2/2] x0_mse, seed 0 failed: out of memory" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not empty: resume the comparison there with --resume"):
        compare_digits(tmp_path / "runs")
    copied.failing.clear()
    copied.executed.clear()
    found = compare_digits(tmp_path / "runs", resume=True)
    assert copied.executed == [("x0_mse, seed 0", "gradients"), ("x0_mse, seed 0", "test")]
    assert_same_tables(tmp_path / "runs", finished)
    assert found.measurements()["bits/dim"]["kl"].mean == float(table_of(finished)["kl"]["bits/dim"])
    with pytest.raises(ValueError, match="seed_0 contains a run of another configuration"):
        compare(
            [DIGITS_CONFIG],
            COMPARED_OBJECTIVES,
            output_dir=tmp_path / "runs",
            resume=True,
            overrides=[*SMALL_COMPARISON, "--data.batch_size=32"],
        )


def test_a_failed_variant_is_one_sentence(copied, capsys):
    copied.failing.add(("x0_mse", "fit"))
    message = error_of(capsys, ["compare", *KL_AND_X0_MSE, "--output_dir", "runs"])
    assert "1 runs failed: x0_mse, seed 0 (runs/x0_mse/seed_0/log.txt). Repeat them with --resume." in message
    message = error_of(capsys, ["compare", "--output_dir", "runs", "--run", "1"])
    assert "run 1 (x0_mse, seed 0) failed: out of memory (runs/x0_mse/seed_0/log.txt)." in message


def test_prepared_runs_are_executed_and_collected(finished, copied, capsys):
    """With several seeds; a part of the variants is collected too."""
    main(["compare", *KL_AND_X0_MSE, "--seeds", "2", "--output_dir", "runs", "--prepare"])
    assert "4 runs, a command each in runs/commands.txt; then --collect" in capsys.readouterr().out
    commands = Path("runs/commands.txt").read_text().splitlines()
    assert commands == [f"lit-ddpm compare --output_dir runs --run {k}" for k in range(4)]
    message = error_of(capsys, ["compare", "--output_dir", "runs", "--collect"])
    assert "output_dir = runs: no variant has all its runs yet, so there is nothing to collect" in message
    (sweep,) = (b.text for b in blocks(text_of(ROOT / "docs" / "comparing.md")) if b.title == "sweep.yaml")
    _, *agent = yaml.safe_load(sweep)["command"]
    main(["--run=0" if arg == "${args}" else arg.replace("runs/compare", "runs") for arg in agent])
    for k in (2, 2):
        main(["compare", "--output_dir", "runs", "--run", str(k)])
    assert capsys.readouterr().out.splitlines()[-2:] == ["run 2 is done"] * 2
    assert [name for name, _ in copied.executed] == ["kl, seed 0"] * 4 + ["kl, seed 1"] * 2
    main(["compare", "--output_dir", "runs", "--collect"])
    assert "2 runs are not complete: x0_mse, seed 0; x0_mse, seed 1." in capsys.readouterr().out
    assert list(table_of(Path("runs"))) == ["kl"]
    for k in (1, 3):
        main(["compare", "--output_dir", "runs", "--run", str(k)])
    assert collect("runs").plan.num_seeds == 2
    found, expected = table_of(Path("runs")), table_of(finished)  # both seeds are copies of one
    assert list(found) == list(expected)
    for variant, row in found.items():
        assert row["bits/dim"] == expected[variant]["bits/dim"]


def test_two_processes_that_meet_do_no_work_twice(copied, tmp_path, capsys):
    plan = prepare([DIGITS_CONFIG], ["kl"], output_dir=tmp_path / "runs", overrides=SMALL_COMPARISON)
    (held,) = plan.runs
    with held.lock(wait=False):
        main(["compare", "--output_dir", str(tmp_path / "runs"), "--run", "0"])
        assert capsys.readouterr().out.splitlines()[-1] == "run 0 is in progress in another process"
        other = threading.Thread(
            target=compare,
            args=([DIGITS_CONFIG], ["kl"], 1, tmp_path / "runs", True, SMALL_COMPARISON),
            daemon=True,
        )
        other.start()
        while "is in progress in another process" not in capsys.readouterr().out:
            assert other.is_alive()
            time.sleep(0.05)
        with (lock := held.files.path.with_suffix(".lock")).open() as file:
            held.execute(file.fileno())
        assert lock.is_file()
    other.join(60)
    assert not other.is_alive()
    assert [command for _, command in copied.executed] == ["fit", "predict", "gradients", "test"]
    assert list(table_of(tmp_path / "runs")) == ["kl"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--run", "2"], "run = 2 is out of range: runs has the runs 0 to 1."),
        (["--run", "-1"], "run = -1 is out of range"),
        (["--run", "0", "--config", "digits"], "--run 0 takes everything from the plan in output_dir: remove digits."),
        (["--collect", "--trainer.max_epochs=2"], "--collect takes everything from the plan in output_dir: remove"),
        (["--collect", "--run", "1"], "not allowed with argument"),
        (["--collect", "--output_dir", "none"], "output_dir = none has no comparison: write its plan with --prepare."),
    ],
)
def test_wrong_steps_are_one_sentence(finished, args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs", ignore=shutil.ignore_patterns("seed_0"))
    assert message in error_of(capsys, ["compare", "--output_dir", "runs", *args])


def test_mixed_versions_are_refused(finished, copied, tmp_path, capsys):
    shutil.copytree(finished, "runs", ignore=shutil.ignore_patterns("seed_0"))
    plan = json.loads(Path("runs/comparison.json").read_text())
    plan["versions"]["torch"] = "1.0"
    Path("runs/comparison.json").write_text(json.dumps(plan))
    for step in (["--run", "0"], ["--collect"], [*KL_AND_X0_MSE, "--resume"]):
        message = error_of(capsys, ["compare", "--output_dir", "runs", *step])
        assert "output_dir = runs was prepared with torch 1.0, not " in message
    assert not copied.executed
    Path("runs/comparison.json").unlink()
    (Path("runs/kl/seed_0")).mkdir(parents=True)
    Path("runs/kl/seed_0/variant.yaml").touch()
    message = error_of(capsys, ["compare", "--output_dir", "runs", *KL_AND_X0_MSE, "--resume"])
    assert "runs has a comparison of an earlier version of lit_ddpm: set another directory." in message


def test_a_killed_run_ends_on_other_engines_with_the_same_tables(finished, monkeypatch):
    """A killed run is resumed by a SLURM array, which meets xargs; the other run is done."""
    run = RunDirectory(Path("runs/compare/kl/seed_0"))
    main(["compare", *KL_AND_X0_MSE, "--prepare"])
    shutil.copytree(finished / "x0_mse", "runs/compare/x0_mse")
    kill_when(run.last_checkpoint.exists, "compare", "--run", "0")
    assert not (run.path / "bound.json").exists()
    bin_directory = Path("bin")
    bin_directory.mkdir()
    for name, line in (("srun", '"$@"'), ("lit-ddpm", f'{sys.executable} -m lit_ddpm "$@"')):
        (bin_directory / name).write_text(f"#!/bin/sh\nexec {line}\n")
        (bin_directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_directory.resolve()}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    page = {block.title: block.text for block in blocks(text_of(ROOT / "docs" / "comparing.md"))}
    Path("array.sh").write_text(page["needs SLURM"])
    slurm = subprocess.Popen(["bash", "array.sh"], env={**os.environ, "SLURM_ARRAY_TASK_ID": "0"})
    subprocess.run(page["needs xargs"], shell=True, check=True)
    assert slurm.wait() == 0
    main(["compare", "--collect"])
    assert_same_tables(Path("runs/compare"), finished)
    steps = [int(row["step"]) for row in read_csv(run.metrics) if row["train/loss"]]
    assert steps == sorted(set(steps))


def test_the_comparison_is_a_wandb_run_of_its_group(copied, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "night"}}
    settings = [*SMALL_COMPARISON, f"--trainer.logger={json.dumps(logger)}"]
    directory = tmp_path / "nightly"
    compare([DIGITS_CONFIG], COMPARED_OBJECTIVES, output_dir=directory, overrides=settings)
    rows, config, _ = read_wandb_run(directory)
    assert config["variants"] == COMPARED_OBJECTIVES
    (row,) = rows
    files = next(directory.glob("wandb/offline-run-*")) / "files"
    header, *_ = (finished / "table.csv").read_text().splitlines()
    table = json.loads((files / row["comparison/table/path"]).read_text())
    assert table["columns"] == header.split(",")
    assert [cells[0] for cells in table["data"]] == COMPARED_OBJECTIVES
    assert table["data"][0][2] == float(table_of(finished)["kl"]["bits/dim"])
    matrix = json.loads((files / row["comparison/matrix/path"]).read_text())
    assert matrix["columns"] == ["row minus column", *COMPARED_OBJECTIVES]
    assert matrix["data"][1][1].startswith(("+", "-"))
    for figure in ("factors", "profile", "rate_distortion", "gradients"):
        assert Image.open(files / row[f"comparison/{figure}/path"]).width >= 600
    assert (files / row["comparison/report/path"]).read_text() == (directory / "report.html").read_text()
    assert [name for name, _ in read_wandb_artifacts(directory)] == ["best.ckpt", "best.ckpt"]


def test_a_trained_model_has_the_name_of_its_folder(finished, monkeypatch):
    monkeypatch.chdir(finished / "kl" / "seed_0")
    (variant,) = resolve_models(["."], [])
    assert variant.name == "seed_0"
