"""The commands fit, validate, test and predict on the shipped configuration."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import FIT_DIGITS, copy_run, error_of, kill_when, read_csv
from PIL import Image

from lit_ddpm import DDPM, GradientStatistics
from lit_ddpm.__main__ import main
from lit_ddpm.cli.arguments import with_run_config


def test_a_run_is_one_directory_with_everything_in_it(run):
    for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "samples"):
        assert (run / name).exists(), name
    columns = set(read_csv(run / "metrics.csv")[0])
    assert {"train/loss", "train/kl", "train/kl_from_x0_mse", "train/form_gap", "train/x0_mse"} <= columns
    assert {"val/bpd", "val/bpd_prior", "val/bpd_diffusion", "val/bpd_reconstruction", "val/bpd_se_noise"} <= columns
    assert {f"sample/{name}_digits" for name in ("fid", "kid", "kid_std", "is")} <= columns
    assert json.loads((run / "sample_metrics.jsonl").read_text())["protocol"]["weights"] == "averaged"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["objective"]["class_path"] == "lit_ddpm.X0MSE"
    assert any((run / "tensorboard").iterdir())
    drawn = {f"{kind}_{step:07d}.png" for kind in ("step", "trajectory") for step in (3, 6)}  # at each validation
    assert {path.name for path in (run / "samples").iterdir()} == drawn
    assert {"perf/images_per_s", "perf/outside_network", "perf/peak_memory_gib"} <= columns
    assert (run / "profile" / "objective_weights.png").exists()


def test_a_checkpoint_alone_is_enough_to_test_it(run, monkeypatch, tmp_path, capsys):
    here = copy_run(run, monkeypatch, tmp_path)
    before = read_csv(here / "metrics.csv")
    results = []
    for size in (360, 360, 77):
        main(["test", "--ckpt_path", str(here / "checkpoints" / "best.ckpt"), f"--data.eval_batch_size={size}"])
        results.append(json.loads((here / "bound.json").read_text()))
    table = capsys.readouterr().out
    for word in ("prior", "diffusion", "reconstruction", "total", "± images", "± noise", "per-pixel histogram"):
        assert word in table
    assert "360 images, 64 network calls an image" in table
    assert "100 generated and 1,257 real images" in table
    evaluations = [json.loads(line) for line in (here / "sample_metrics.jsonl").read_text().splitlines()]
    assert [entry["command"] for entry in evaluations] == ["fit", "test", "test", "test"]
    assert evaluations[1] == evaluations[2]
    step = torch.load(here / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    assert [entry["global_step"] for entry in evaluations] == [3, step, step, step]
    terms = results[0]["terms"]
    parts = sum(terms[name]["value"] for name in ("prior", "diffusion", "reconstruction"))
    assert terms["total"]["value"] == pytest.approx(parts, abs=1e-9)
    assert results[0] == results[1]
    for term, entry in terms.items():
        assert results[2]["terms"][term]["value"] == pytest.approx(entry["value"], abs=1e-5)
    assert results[0]["baseline"]["value"] == pytest.approx(2.43, abs=0.02)
    rows = read_csv(here / "metrics.csv")  # the test appends to the metrics of the fit
    assert len(rows) == len(before) + 3
    assert [row["val/bpd"] for row in rows[: len(before)]] == [row["val/bpd"] for row in before]


def test_validate_repeats_the_bound_of_the_fit(run, monkeypatch, tmp_path):
    here = copy_run(run, monkeypatch, tmp_path)
    main(["validate", "--ckpt_path", str(here / "checkpoints" / "last.ckpt"), "--trainer.enable_progress_bar=false"])
    values = [row["val/bpd"] for row in read_csv(here / "metrics.csv") if row["val/bpd"]]
    assert float(values[-1]) == pytest.approx(float(values[-2]), abs=1e-5)


def test_predict_writes_images_and_one_array(run, monkeypatch, tmp_path, capsys):
    here = copy_run(run, monkeypatch, tmp_path)
    checkpoint = str(here / "checkpoints" / "best.ckpt")
    main(["predict", "--ckpt_path", checkpoint, "--num_samples=70", "--seed=3"])
    array = np.load(here / "predict" / "samples.npz")["arr_0"]
    assert array.shape == (70, 8, 8, 1)
    assert array.dtype == np.uint8
    assert set(np.unique(array)) <= {round(level * 255 / 16) for level in range(17)}
    for number in (0, 69):
        assert np.array_equal(np.asarray(Image.open(here / "predict" / f"{number:06d}.png")), array[number, :, :, 0])
    main(["predict", "--ckpt_path", checkpoint, "--num_samples=5", "--seed=3", "--output_dir=five"])
    assert np.array_equal(np.load("five/samples.npz")["arr_0"], array[:5])
    assert "is not empty" in error_of(capsys, ["predict", "--ckpt_path", checkpoint, "--num_samples=70"])
    assert "num_samples = 0" in error_of(capsys, ["predict", "--ckpt_path", checkpoint, "--num_samples=0"])


def test_a_restart_is_refused_and_a_resume_is_not(run, monkeypatch, tmp_path, capsys):
    here = copy_run(run, monkeypatch, tmp_path)
    last = here / "checkpoints" / "last.ckpt"
    message = error_of(capsys, [*FIT_DIGITS])
    assert "runs/digits already contains a run: resume it with --ckpt_path runs/digits/checkpoints/last.ckpt" in message
    before = read_csv(here / "metrics.csv")
    main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=3"])
    assert len(read_csv(here / "metrics.csv")) > len(before)
    assert read_csv(here / "metrics.csv")[0]["train/loss"] == before[0]["train/loss"]
    assert torch.load(last, weights_only=True)["epoch"] == 2


def test_overridden_settings_are_warned_about(run, monkeypatch, tmp_path):
    here = copy_run(run, monkeypatch, tmp_path)
    last = str(here / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match=r"settings of the checkpoint are used for model .*optimizer\.init_args\.lr"):
        main(["fit", "--ckpt_path", last, "--trainer.max_epochs=3", "--model.optimizer.lr=0.5"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*checkpoint's own settings.*")
        main(["fit", "--ckpt_path", last, "--trainer.max_epochs=4"])


def test_load_from_checkpoint_gives_samples_in_python(run):
    module = DDPM.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert module.sample(2, seed=0).shape == (2, 1, 8, 8)


def test_the_config_next_to_a_checkpoint_is_added(run):
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    config = ["--config", str(run / "config.yaml")]
    assert with_run_config(["test", "--ckpt_path", checkpoint]) == ["test", *config, "--ckpt_path", checkpoint]
    assert with_run_config(["test", f"--ckpt_path={checkpoint}"])[1:3] == config
    for args in (["test", "-c", "x", "--ckpt_path", checkpoint], ["fit"], ["test", "--ckpt_path"], []):
        assert with_run_config(args) == args


def test_a_resumed_fit_repeats_no_step(run, monkeypatch, tmp_path):
    """As after SIGKILL: the files are ahead of the checkpoint."""
    here = copy_run(run, monkeypatch, tmp_path)
    before = read_csv(here / "metrics.csv")
    later = {**before[-1], "step": "99", "train/loss": "1.0"}
    with (here / "metrics.csv").open("a") as file:
        file.write(",".join(later.values()) + "\n")
    main(["fit", "--ckpt_path", str(here / "checkpoints" / "last.ckpt"), "--trainer.max_epochs=3"])
    after = read_csv(here / "metrics.csv")
    steps = [int(row["step"]) for row in after if row["train/loss"]]
    assert steps == sorted(set(steps))
    assert max(steps) == 8
    assert len(after) > len(before)


def test_a_killed_predict_resumes(run):
    predict = ["predict", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--num_samples=200", "--output_dir"]
    main([*predict, "whole"])
    for count in (1, 130):
        kill_when(lambda count=count: len(list(Path("killed").glob("*.png"))) >= count, *predict, "killed")
        assert not Path("killed/samples.npz").exists()
    main([*predict, "killed"])
    whole, killed = (np.load(Path(name) / "samples.npz") for name in ("whole", "killed"))
    assert np.array_equal(whole["arr_0"], killed["arr_0"])


def test_gradients_of_a_checkpoint_are_measured(run, monkeypatch, tmp_path, capsys):
    here = copy_run(run, monkeypatch, tmp_path)
    before = (here / "metrics.csv").read_bytes()
    command = ["gradients", "--ckpt_path", str(here / "checkpoints" / "best.ckpt"), "--num_batches=3"]
    main(command)
    out = capsys.readouterr().out
    found = GradientStatistics.load(here / "gradients.npz")
    table = out[out.index("          t") :].splitlines()
    assert [int(line.split()[0]) for line in table[1 : len(found.t) + 1]] == found.t.tolist()
    assert "uniform t needs " in out
    model = DDPM.load_from_checkpoint(here / "checkpoints" / "best.ckpt")
    assert f"{float(model.denoiser.schedule.log_snr(2)):.4g}" in table[1]
    assert (here / "metrics.csv").read_bytes() == before
    main([*command, "--model.schedule.num_steps=32"])  # a network of log SNR on other steps
    assert GradientStatistics.load(here / "gradients.npz").t[-1] == 32
    assert "num_batches = 1 must be at least 2" in error_of(capsys, [*command[:-1], "--num_batches=1"])
    message = error_of(capsys, [*command, "--data.batch_size=1257"])
    assert "at least two batches of images, not 1: set a smaller batch_size" in message
    assert "ckpt_path = none.ckpt does not exist" in error_of(capsys, ["gradients", "--ckpt_path", "none.ckpt"])
