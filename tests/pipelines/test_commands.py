"""lit-ddpm import and export, and what other commands do with an imported model."""

import csv
import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler
from helpers import SMALL_COMPARISON, error_of, fit_digits, run_here
from helpers.pipelines import random_network, random_pipeline

from benchmarks.common.pipelines import pipeline_samples, train_pipeline
from lit_ddpm import DDPM, AncestralSampler
from lit_ddpm.__main__ import main
from lit_ddpm.compare.runs import Run
from lit_ddpm.likelihood.report import Report
from lit_ddpm.pipelines import load_pipeline

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
CALLBACKS = next(flag for flag in SMALL_COMPARISON if flag.startswith("--trainer.callbacks"))
CALLBACKS = CALLBACKS.replace('"num_samples": 100', '"num_samples": 64')  # a chunk
LAST = "runs/theirs/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pipeline that diffusers' own training loop trained on the digits, and its directory."""
    scheduler = DDPMScheduler(num_train_timesteps=30, beta_schedule="squaredcos_cap_v2")
    pipeline = train_pipeline(scheduler, max_steps=60, network=random_network())
    directory = tmp_path_factory.mktemp("pipeline") / "theirs"
    pipeline.save_pretrained(directory)
    return pipeline, directory


@pytest.fixture(scope="module")
def imported_run(trained, tmp_path_factory):
    """The directory that the import of the trained pipeline writes to."""
    place = tmp_path_factory.mktemp("imported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "theirs").symlink_to(trained[1])
        main(["import", "theirs", "--data", "digits", CALLBACKS, "--data.eval_batch_size=360", *QUIET])
    return place


@pytest.fixture
def imported(imported_run, tmp_path, monkeypatch):
    """The run of the trained pipeline, in the current directory."""
    shutil.copytree(imported_run, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/theirs")


def test_an_imported_model_is_tested_sampled_and_fine_tuned(imported, trained, capsys):
    main(["test", "--ckpt_path", LAST])
    report = Report.load(imported / "bound.json")
    assert report.num_images == 360
    assert report.num_calls == 30
    assert 1.5 < report.terms["total"].value < 4.5  # 4.09 bits for 17 levels without a model, 2.42 for a histogram
    assert "fid_digits" in capsys.readouterr().out
    main(["predict", "--ckpt_path", LAST, "--num_samples=8"])
    assert len(list((imported / "predict").glob("*.png"))) == 8
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.check_val_every_n_epoch=1"]
    main(["fit", "--ckpt_path", LAST, "--trainer.log_every_n_steps=1", *few])
    with (imported / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert len(losses) == 3
    assert max(losses) < 0.5  # the weights are those of the import: an untrained network has a loss of 1
    assert DDPM.load_from_checkpoint(imported / "checkpoints" / "best.ckpt", weights_only=True).trained_steps == 3


def test_samples_of_a_trained_pipeline(trained):
    pipeline, directory = trained
    model = load_pipeline(directory)
    assert model.data.image_shape == (1, 8, 8)
    assert float((model.sample(64).clamp(-1, 1) - pipeline_samples(pipeline, 64)).abs().max()) < 1e-4


def test_the_directory_is_that_of_a_run(imported, trained):
    config = yaml.safe_load((imported / "config.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]
    assert model["network"]["class_path"] == "lit_ddpm.nn.DiffusersUNet"
    assert model["schedule"]["class_path"] == "lit_ddpm.CosineSchedule"
    assert (model["variance"], model["clip"], model["lr_scheduler"]) == ("fixed_small", True, None)
    assert data["class_path"] == "lit_ddpm.data.DigitsDataModule"
    module = DDPM.load_from_checkpoint(LAST, weights_only=True)
    assert (module.data.image_shape, module.levels, module.trained_steps) == ((1, 8, 8), 17, 0)
    images = module.sample(4, sampler=AncestralSampler(chunk_size=4))
    assert float((images.clamp(-1, 1) - pipeline_samples(trained[0], 4)).abs().max()) < 1e-4


def test_settings_and_data_modules(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--model.variance=beta", "--data.batch_size=32", "--trainer.max_epochs=3"]
    data = "--data=lit_ddpm.data.DigitsDataModule"
    main(["import", str(trained[1]), data, "--output_dir", "runs/a", *settings])
    config = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    assert config["model"]["init_args"]["variance"] == "beta"
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["trainer"]["max_epochs"] == 3
    main(["test", "--ckpt_path", "runs/a/checkpoints/last.ckpt", "--trainer.fast_dev_run=true", *QUIET])


def test_an_export_of_an_imported_model_has_a_card(imported, trained, capsys):
    main(["test", "--ckpt_path", LAST, "--trainer.limit_test_batches=2", "--data.eval_batch_size=20"])
    main(["export", "--ckpt_path", LAST, "--output_dir", "out", "--num_samples=4"])
    assert capsys.readouterr().out.endswith("written to out\n")
    card = Path("out/README.md").read_text()
    total = Report.load(imported / "bound.json").terms["total"]
    assert f"| total | {total.value:.4f} | {total.se_images:.4f} |" in card
    record = json.loads((imported / "sample_metrics.jsonl").read_text().splitlines()[-1])
    assert f"| fid | {record['metrics']['fid']:.4f} |" in card
    assert f"num_generated {record['protocol']['num_generated']}" in card
    assert "class_path: lit_ddpm.nn.DiffusersUNet" in card
    assert "from lit_ddpm.\n" in card
    drawn = pipeline_samples(DDPMPipeline.from_pretrained("out"), 4)
    torch.testing.assert_close(drawn, pipeline_samples(trained[0], 4), rtol=0, atol=1e-4)
    assert load_pipeline("out").denoiser.variance == "fixed_small"
    # The measurements are those of the tested weights only.
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=0"]
    main(["fit", "--ckpt_path", LAST, *few])
    main(["export", "--ckpt_path", LAST, "--output_dir", "later", "--num_samples=0"])
    assert "Variational bound" not in Path("later/README.md").read_text()
    assert "the averaged weights after 2 steps" in Path("later/README.md").read_text()


def test_trained_models_are_compared(imported, monkeypatch, capsys):
    """An imported model, another variance of it, and a model that was trained here."""
    monkeypatch.setattr(Run, "_run_process", run_here)
    main(["import", "theirs", "--data", "digits", "--output_dir", "runs/large", "--model.variance=fixed_large"])
    small = ["--trainer.callbacks=[]", "--trainer.limit_test_batches=2", "--data.eval_batch_size=20", *QUIET]
    small.append("--data.batch_size=8")  # of the gradients
    fit_digits()
    trained = f"{imported},runs/large/checkpoints/last.ckpt,runs/digits"
    models = ["--models", trained, "--output_dir", "runs/compare"]
    main(["compare", *models, *small])
    table = capsys.readouterr().out
    with Path("runs/compare/table.csv").open() as file:
        rows = {row["trained_with"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["theirs", "large", "digits"]
    assert rows["theirs"]["measured_with_digits"] == ""  # the timesteps of another schedule mean something else
    assert float(rows["theirs"]["bits/dim"]) != float(rows["large"]["bits/dim"])
    assert float(rows["theirs"]["measured_with_large"]) > 0
    assert "3 of 3 runs to do" in table
    assert not Path("runs/compare/theirs/seed_0/checkpoints").exists()  # nothing is trained
    report = Path("runs/compare/report.html").read_text()
    assert f"--models {trained}" in report
    assert "Trained before, and only measured here: theirs, large, digits." in report


IMPORT = ["import", "theirs", "--data"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["import", "theirs"], "import: the following arguments are required: --data"),
        (
            ["import", "nothing/here/at/all", "--data", "digits"],
            "nothing/here/at/all is neither a directory nor a model",
        ),
        ([*IMPORT, "mnists"], "data = mnists is not a class: it must be one of"),
        ([*IMPORT, "cifar10"], "in_channels = 1 of DiffusersUNet does not fit images of image_shape = [3, 32, 32]"),
        ([*IMPORT, "digits", "--model.variances=beta"], "variances"),
        ([*IMPORT, "digits", "--output_dir", "runs/theirs"], "runs/theirs already contains a run"),
        (["export", "--ckpt_path", "nothing.ckpt", "--output_dir", "o"], "ckpt_path = nothing.ckpt does not exist"),
        (["export", "--ckpt_path", LAST], "export: the following arguments are required: --output_dir"),
        (["export", "--ckpt_path", LAST, "--output_dir", "runs/theirs"], "runs/theirs is not empty"),
        (
            ["export", "--ckpt_path", LAST, "--output_dir", "o", "--num_samples=-2"],
            "num_samples = -2 must be at least 0",
        ),
        (["compare"], "there is nothing to compare"),
        (["compare", "--objectives", "kl"], "variants to train need both --config and --objectives"),
        (["compare", "--models", "nothing"], "model = nothing is neither a run directory with a checkpoint nor"),
        (["compare", "--models", "runs/theirs", "--seeds=2"], "seeds = 2: trained models have one seed"),
        (["compare", "--models", f"runs/theirs,{LAST}"], "two variants have the name 'theirs'"),
        (
            ["compare", "--config", "mnist", "--objectives=kl", "--models=runs/theirs"],
            "the data of theirs and kl differ",
        ),
    ],
)
def test_wrong_commands_are_one_sentence(args, message, imported, capsys):
    assert message in error_of(capsys, args)


@pytest.mark.parametrize("name", ["google/ddpm-cifar10-32", "nowhere"])
def test_no_internet_is_one_sentence(name, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    message = f"{name} is neither a directory nor a model on the Hub ("
    assert message in error_of(capsys, ["import", name, "--data", "cifar10"])


def test_another_directory_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random_pipeline().save_pretrained("theirs")
    Path("theirs/unet/diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    assert "the weights of theirs/unet do not load" in error_of(capsys, [*IMPORT, "digits"])
    assert not Path("runs").exists()
