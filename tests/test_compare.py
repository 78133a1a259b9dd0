import csv
import json
import math
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TinyNetwork

from lit_ddpm import (
    CosineSchedule,
    Denoiser,
    EpsParametrization,
    LinearSchedule,
    LogSNRSchedule,
    MeanParametrization,
    VParametrization,
    X0Parametrization,
)
from lit_ddpm.__main__ import main
from lit_ddpm.compare import Value, audit, compare
from lit_ddpm.compare import arms as arms_module
from lit_ddpm.compare.comparison import Comparison, text_of
from lit_ddpm.compare.runs import Run, expected_seconds
from lit_ddpm.diffusion.ledger import Report
from lit_ddpm.training.module import DDPM

CONFIGS = Path(__file__).parent.parent / "configs"
DIGITS = str(CONFIGS / "digits.yaml")
SMALL = [
    "--model.network.width=8",
    "--model.network.num_blocks=1",
    "--model.network.head_channels=8",
    "--model.schedule.num_steps=32",
    "--model.sampler.num_steps=8",
    "--model.num_val_timesteps=4",
    "--data.eval_batch_size=360",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
ARMS = ["kl", "x0_mse"]


def compare_here(directory, **kwargs):
    return compare([DIGITS], kwargs.pop("objectives", ARMS), output_dir=directory, overrides=SMALL, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small comparison in processes of its own, by the command."""
    directory = tmp_path_factory.mktemp("compare") / "runs"
    main(["compare", "--config", DIGITS, "--objectives", ",".join(ARMS), "--output_dir", str(directory), *SMALL])
    return directory


def rows(directory):
    with (directory / "table.csv").open(newline="") as file:
        return {row["trained_with"]: row for row in csv.DictReader(file)}


def without_timing(directory):
    return {arm: {k: v for k, v in row.items() if "images/s" not in k} for arm, row in rows(directory).items()}


def test_arms_differ_in_their_objective_alone(finished):
    configs = [yaml.safe_load((finished / arm / "seed_0" / "config.yaml").read_text()) for arm in ARMS]
    objectives = [config["model"]["init_args"].pop("objective") for config in configs]
    assert objectives[0] == {"class_path": "lit_ddpm.PosteriorKL", "init_args": {"decoder": None}}
    assert objectives[1]["init_args"]["weighting"]["class_path"] == "lit_ddpm.UniformWeighting"
    for config in configs:
        config["trainer"].pop("default_root_dir")
    assert configs[0] == configs[1]


def test_arms_begin_with_the_same_weights_data_timesteps_and_noise(finished):
    first = []
    for arm in ARMS:
        with (finished / arm / "seed_0" / "metrics.csv").open(newline="") as file:
            first.append(next(row for row in csv.DictReader(file) if row["train/loss"]))
    assert first[0]["train/kl"] == first[1]["train/kl"]
    assert first[0]["train/x0_mse"] == first[1]["train/x0_mse"]
    assert first[0]["train/loss"] != first[1]["train/loss"]


def test_the_table_says_what_the_runs_found(finished):
    table = rows(finished)
    assert list(table) == ARMS
    for arm in ARMS:
        ledger = json.loads((finished / arm / "seed_0" / "ledger.json").read_text())
        (line,) = (finished / arm / "seed_0" / "sample_metrics.jsonl").read_text().splitlines()[-1:]
        assert json.loads(line)["command"] == "test"
        assert float(table[arm]["bits/dim"]) == ledger["terms"]["total"]["value"]
        assert float(table[arm]["bits/dim_error"]) == ledger["terms"]["total"]["se_images"]
        assert float(table[arm]["fid_digits"]) == json.loads(line)["metrics"]["fid"]
        assert float(table[arm]["images/s"]) > 0
        # With the posterior's variance the KL terms are the weighted x0-MSE, of which there are T - 1.
        nats = ledger["terms"]["diffusion"]["value"] * math.log(2)
        assert float(table[arm]["measured_with_kl"]) == pytest.approx(nats / 31, rel=1e-6)
        x0_mse = ledger["x0_mse"][1:]
        assert float(table[arm]["measured_with_x0_mse"]) == pytest.approx(sum(x0_mse) / 31, rel=1e-6)


def test_the_report_is_one_file_with_everything(finished):
    html = (finished / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 2 + 3 + 1  # samples, overlays, one audit for both
    assert not re.search(r'(src|href)="(?!data:)', html)
    for text in ("lit-ddpm compare --config", "kl, seed 0", "PosteriorKL", "float64", "measured with", *ARMS):
        assert text in html
    assert (finished / "audit_kl.png").is_file()


def test_interrupted_and_resumed_is_the_same_comparison(finished, monkeypatch, tmp_path):
    def killed(self):
        if self.current_epoch == 1 and self.objective.__class__.__name__ == "X0MSE":
            raise RuntimeError("killed")

    def process(self, command, *args):  # in this process: a new one takes five seconds to start
        self.log.touch()
        main([command, *args])

    monkeypatch.setattr(Run, "_process", process)
    with monkeypatch.context() as patch:
        patch.setattr(DDPM, "on_train_epoch_start", killed)
        with pytest.raises(RuntimeError, match="killed"):
            compare_here(tmp_path / "runs")
    with pytest.raises(ValueError, match="is not empty: go on with the comparison there with --resume"):
        compare_here(tmp_path / "runs")
    before = (tmp_path / "runs" / "kl" / "seed_0" / "ledger.json").stat().st_mtime_ns
    found = compare_here(tmp_path / "runs", resume=True)
    assert (tmp_path / "runs" / "kl" / "seed_0" / "ledger.json").stat().st_mtime_ns == before
    assert without_timing(tmp_path / "runs") == without_timing(finished)
    assert found.columns()["bits/dim"]["kl"].mean == float(rows(finished)["kl"]["bits/dim"])
    with pytest.raises(ValueError, match="seed_0 holds a run of another configuration"):
        compare([DIGITS], ARMS, output_dir=tmp_path / "runs", resume=True, overrides=[*SMALL, "--data.batch_size=32"])


def test_a_crashed_arm_loses_nothing(tmp_path, capsys, monkeypatch):
    """The other arm is reported, and resuming repeats the crashed one alone."""
    (tmp_path / "crashing.yaml").write_text("model: {class_path: lit_ddpm.DDPM, init_args: {clip: true}}")
    executed = []

    def process(self, command, *args):
        executed.append((self.arm.name, command))
        self.log.write_text("out of memory\n")
        if self.arm.name == "crashing" and len(executed) <= 4:
            raise subprocess.CalledProcessError(1, command)
        main([command, *args])

    monkeypatch.setattr(Run, "_process", process)
    objectives = f"kl,{tmp_path / 'crashing.yaml'}"
    command = ["compare", "--config", DIGITS, "--objectives", objectives, "--output_dir", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *SMALL])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "crashing, seed 0 failed: out of memory" in captured.out
    assert "1 runs failed: crashing, seed 0" in captured.err
    assert list(rows(tmp_path / "runs")) == ["kl"]
    main([*command, *SMALL, "--resume"])
    parts = ["fit", "predict", "test"]
    assert executed == [*(("kl", part) for part in parts), ("crashing", "fit"), *(("crashing", part) for part in parts)]
    assert list(rows(tmp_path / "runs")) == ["kl", "crashing"]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["kl", "kll"], "objective 'kll' is neither one of kl, x0_mse, simple, min_snr nor the path of an overlay"),
        (["kl", "kl"], "two arms have the name 'kl'"),
        (["kl", "overlays/kl.yaml"], "two arms have the name 'kl'"),
        (["kl", "overlays/none.yaml"], "the overlay overlays/none.yaml of objectives is not there"),
        ([], "objectives is empty"),
    ],
)
def test_unfit_arms_are_named(objectives, message, tmp_path, capsys):
    for act in (
        lambda: compare_here(tmp_path / "runs", objectives=objectives),
        lambda: main(["compare", "--config", DIGITS, "--objectives", ",".join(objectives), *SMALL]),
    ):
        with pytest.raises((ValueError, SystemExit)) as raised:
            act()
        text = str(raised.value) if raised.type is ValueError else capsys.readouterr().err
        assert message in text
    assert not (tmp_path / "runs").exists()


def test_unfit_settings_are_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="seeds = 0 must be at least 1"):
        compare_here(tmp_path / "runs", num_seeds=0)
    with pytest.raises(ValueError, match=r"keeps no checkpoint last.ckpt"):
        compare([DIGITS], ["kl"], output_dir=tmp_path / "runs", overrides=["--trainer.callbacks=null"])
    for extra, message in (
        (["--trainer.epochs=3"], "trainer.epochs"),
        (["--seeds", "many"], "--seeds"),
        (["--config", "none.yaml"], "none.yaml"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", "--config", DIGITS, "--objectives", "kl", "--output_dir", str(tmp_path / "runs"), *extra])
        assert stopped.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("lit-ddpm: error: ")
        assert message in last
    assert not (tmp_path / "runs").exists()


def test_wandb_sees_ordinary_runs_in_one_group(tmp_path):
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p"}}
    arms = arms_module.resolve_arms([DIGITS], ["kl"], [*SMALL, f"--trainer.logger={json.dumps(logger)}"])
    run = Run(arms[0], 2, tmp_path / "kl" / "seed_2", "night", pictures=False)
    given = run.config()["trainer"]["logger"]["init_args"]
    assert (given["group"], given["name"], given["project"]) == ("night", "kl-2", "p")
    assert run.config()["seed_everything"] == 2
    assert arms[0].config["trainer"]["logger"]["init_args"].get("group") is None
    assert 12 < expected_seconds(arms[0]) < 600


SCHEDULES = [LinearSchedule(1000), CosineSchedule(300), LogSNRSchedule(min=-6, max=13, num_steps=256)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "parametrization", [X0Parametrization(), EpsParametrization(), VParametrization(), MeanParametrization()]
)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_audit_finds_the_forms_equal(schedule, parametrization, variance):
    denoiser = Denoiser(TinyNetwork(), schedule, parametrization, variance)
    found = audit(denoiser, [torch.float64, torch.float32, torch.bfloat16], image_shape=(1, 2, 2))
    found.check()
    assert list(found.values) == ["float64", "float32", "bfloat16"]
    assert found.values["float64"].shape == found.gradients["float64"].shape == (schedule.num_steps - 1,)
    assert found.largest("float32") < 1e-5
    assert found.largest("bfloat16") < 1e-2


def test_the_audit_finds_a_wrong_weight(monkeypatch, tmp_path, capsys):
    from lit_ddpm import objective

    right = objective.kl_weight
    monkeypatch.setattr(
        objective,
        "kl_weight",
        lambda schedule, t, variance: right(schedule, t, variance) * (1 + 2e-10 * (t == 7).double()),
    )
    found = audit(Denoiser(TinyNetwork(), LinearSchedule(20), VParametrization()))
    with pytest.raises(ArithmeticError, match="at t = 7"):
        found.check()
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--config", DIGITS, "--objectives", "kl", "--output_dir", str(tmp_path / "runs"), *SMALL])
    assert stopped.value.code == 2
    assert "at t = 7" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "kl").exists()


def test_a_column_is_led_beyond_the_errors_alone():
    def with_seeds(count):
        return Comparison([], {"a": [], "b": []}, {}, count, {})

    clear = {"a": Value(1.0, 0.1), "b": Value(2.0, 0.1)}
    assert with_seeds(3).leaders("bits/dim", clear) == {"a"}
    assert with_seeds(3).leaders("is_digits", clear) == {"b"}
    assert with_seeds(2).leaders("bits/dim", clear) == set()  # two seeds hardly know their error
    assert with_seeds(3).leaders("images/s", clear) == set()
    tie = clear | {"c": Value(1.1, 0.1)}
    assert with_seeds(3).leaders("bits/dim", tie) == {"a", "c"}
    assert with_seeds(1).leaders("fid", {"a": Value(1.0, math.nan), "b": Value(2.0, math.nan)}) == set()
    assert with_seeds(3).leaders("prior", {"a": Value(1.0, 0.0), "b": Value(1.0, 0.0)}) == set()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value(1.83742, 0.0128), "1.837 ± 0.013"),
        (Value(12345.6, 210.0), "12,346 ± 210"),
        (Value(0.0530026, 0.0000161), "0.053003 ± 0.000016"),
        (Value(12.3591, math.nan), "12.36"),
        (None, "—"),
    ],
)
def test_a_value_is_printed_to_two_digits_of_its_error(value, text):
    assert text_of(value) == text


def test_a_report_can_be_read_again(finished):
    report = Report.load(finished / "kl" / "seed_0" / "ledger.json")
    report.save(finished / "again.json")
    assert Report.load(finished / "again.json") == report
