"""What people watch a run by: in W&B, in TensorBoard and in files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb_history
import yaml
from helpers import Few, digits, tiny_module, trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import CONFIGS, DIGITS, SMALL, error_of

from lit_ddpm import DDPM, DiscretizedGaussian
from lit_ddpm.__main__ import main
from lit_ddpm.callbacks import EMA, ELBOProfile, Performance
from lit_ddpm.diffusion.objective import kl_forms

WANDB = ["--config", str(CONFIGS / "logger" / "wandb.yaml")]
QUICK = [
    *SMALL,
    "--trainer.max_epochs=40",
    "--trainer.limit_train_batches=2",
    "--trainer.log_every_n_steps=10",
    "--data.batch_size=32",
]
PICTURES = {"sample/grid", "sample/trajectory", "val/elbo_terms", "val/elbo_rate", "val/rate_distortion"}
TERMS = {"val/bpd", "val/bpd_prior", "val/bpd_diffusion", "val/bpd_reconstruction", "val/bpd_se_noise"}


def fit(*callbacks, module=None, data=None, **kwargs):
    run = trainer(**{"callbacks": list(callbacks), "limit_val_batches": 1, "max_epochs": 2, **kwargs})
    run.fit(module or tiny_module(), data or digits())
    return run


def table(path):
    with Path(path).open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


# --- W&B


@pytest.fixture(scope="module", params=[1, 2])
def wandb_run(request, tmp_path_factory):
    """The run directory of a fit with an offline W&B run, from one process and from two."""
    place = tmp_path_factory.mktemp("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "TORCH_HOME": str(place)}
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"] * (request.param == 2)
    command = [sys.executable, "-m", "lit_ddpm", *DIGITS, *WANDB, *QUICK, *two]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return place / "runs" / "digits"


def test_an_offline_run_of_wandb_holds_the_dashboard(wandb_run):
    rows, config, summaries = wandb_history.read(wandb_run)
    assert all("trainer/global_step" in row for row in rows)
    keys = {key for row in rows for key in row}
    assert TERMS | {"sample/fid_digits", "train/kl", "train/kl_from_x0_mse", "train/form_gap"} <= keys
    assert {"perf/images_per_s", "perf/outside_network", "perf/peak_memory_gib"} <= keys

    # Each key once a step, from two processes as from one.
    for key in keys - {"trainer/global_step", "epoch", "_step", "_runtime", "_timestamp"}:
        steps = [row["trainer/global_step"] for row in rows if key in row]
        assert len(steps) == len(set(steps)), key
    assert [row["trainer/global_step"] for row in rows if "val/bpd" in row] == [39, 79]
    assert [row["trainer/global_step"] for row in rows if "sample/fid_digits" in row] == [39, 79]

    files = next(wandb_run.glob("wandb/offline-run-*")) / "files"
    for key in PICTURES | {"objective_weights"}:
        (row,) = [row for row in rows if f"{key}/filenames" in row]
        assert row["trainer/global_step"] == (0 if key == "objective_weights" else 79)
        picture = np.asarray(Image.open(files / row[f"{key}/filenames"][0]).convert("RGB"))
        assert picture.dtype == np.uint8
        assert 20 < picture.mean() < 254
        assert row[f"{key}/captions"][0]
    (row,) = [row for row in rows if "val/elbo_profile/path" in row]
    written = json.loads((files / row["val/elbo_profile/path"]).read_text())
    assert written["columns"] == ["t", "kl", "kl_training", "rate", "rmse", "weight", "kl_weight"]
    assert np.array(written["data"], dtype=float).shape == (48, 7)

    assert config["names"] == {
        "objective": "X0MSE",
        "weighting": "KLWeighting",
        "parametrization": "VParametrization",
        "schedule": "LogSNRSchedule",
    }
    assert config["config"]["trainer"]["max_epochs"] == 40
    assert config["sample_metrics"]["val"]["weights"] == "averaged"
    assert summaries["val/bpd"] == ("trainer/global_step", "min")
    assert summaries["sample/fid_digits"] == ("trainer/global_step", "min")


def test_later_commands_on_a_run_use_its_wandb_run(wandb_run):
    logger = yaml.safe_load((wandb_run / "config.yaml").read_text())["trainer"]["logger"]["init_args"]
    (path,) = wandb_run.glob("wandb/offline-run-*/*.wandb")
    assert path.stem == f"run-{logger['id']}"


def test_no_login_is_one_sentence_with_two_ways_out(monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("NETRC", "no_netrc")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    message = error_of(capsys, [*DIGITS, *WANDB, *QUICK])
    assert "wandb login" in message
    assert "WANDB_MODE=offline" in message
    assert not Path("runs/digits/metrics.csv").exists()


# --- without it


@pytest.mark.parametrize("tensorboard", [True, False])
def test_tensorboard_and_files_alone_work_without_wandb(monkeypatch, tensorboard):
    monkeypatch.setitem(sys.modules, "wandb", None)
    main([*DIGITS, *QUICK, *([] if tensorboard else ["--trainer.logger=[]"])])
    run = Path("runs/digits")
    names = {path.name for path in (run / "profile").iterdir()}
    for stem in ("elbo_terms", "elbo_rate", "rate_distortion"):
        assert f"val_{stem}_0000080.png" in names
    assert {"objective_weights.png", "val_elbo_profile_0000080.csv"} <= names
    with (run / "metrics.csv").open() as file:
        columns = set(next(csv.reader(file)))
    assert TERMS | {"sample/fid_digits", "perf/images_per_s"} <= columns
    assert (run / "tensorboard").exists() == tensorboard
    if tensorboard:
        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        assert PICTURES | {"objective_weights"} <= set(events.Tags()["images"])
        assert TERMS | {"sample/fid_digits"} <= set(events.Tags()["scalars"])
        assert [event.step for event in events.Scalars("val/bpd")] == [39, 79]
        assert [event.step for event in events.Images("val/elbo_terms")] == [79]


def test_a_missing_wandb_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    assert "wandb" in error_of(capsys, [*DIGITS, *WANDB, *QUICK]).lower()


# --- the profile


def test_the_profile_is_drawn_when_it_is_due():
    fit(ELBOProfile(every_n_epochs=2), max_epochs=4, num_sanity_val_steps=1)
    assert sorted(path.name for path in Path("profile").glob("*terms*")) == [
        "val_elbo_terms_0000008.png",
        "val_elbo_terms_0000016.png",
    ]


def test_the_profile_makes_no_network_calls_of_its_own():
    calls = []
    for callbacks in ([], [ELBOProfile(), Performance()]):
        module = tiny_module()
        count = [0]
        module.denoiser.network.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        fit(*callbacks, module=module)
        calls.append(count[0])
    assert calls[0] == calls[1]


def test_the_profile_of_a_test_is_exact_and_at_the_step_of_its_checkpoint():
    module = tiny_module()
    checkpoint = fit(module=module, enable_checkpointing=True).checkpoint_callback.best_model_path
    run = trainer(callbacks=ELBOProfile(), logger=CSVLogger(".", "", ""))
    run.test(module, Few(), ckpt_path=checkpoint, verbose=False)
    rows = table("profile/test_elbo_profile_0000008.csv")
    report = module.last_report
    assert [row["t"] for row in rows] == list(range(2, 21))
    assert [row["kl"] for row in rows] == pytest.approx(report.profile)
    assert sum(row["kl"] for row in rows) == pytest.approx(report.terms["diffusion"].value)
    with Path("metrics.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert float(line["step"]) == 7  # counted from 0, as in the fit
    assert "test/bpd" in line


def test_a_test_after_a_fit_is_at_the_step_where_the_fit_ended():
    module = tiny_module()
    run = fit(ELBOProfile(), module=module, max_epochs=3, logger=CSVLogger(".", "", ""))
    run.test(module, Few(), verbose=False)
    assert Path("profile/test_elbo_profile_0000012.csv").exists()
    with Path("metrics.csv").open() as file:
        (line,) = [row for row in csv.DictReader(file) if row["test/bpd"]]
    assert float(line["step"]) == 11


def test_the_training_estimate_is_that_of_the_batches_it_saw():
    seen = torch.zeros(2, 19, dtype=torch.float64)
    module = tiny_module()
    original = module.training_step

    def recording(batch, batch_idx):
        loss = original(batch, batch_idx)
        t, kl = module.last_kl
        seen.index_add_(1, t - 2, torch.stack([kl, torch.ones_like(kl)]).detach())
        return loss

    module.training_step = recording
    fit(ELBOProfile(), module=module, max_epochs=1)
    rows = table("profile/val_elbo_profile_0000004.csv")
    expected = seen[0] / seen[1] / np.log(2)
    assert [row["kl_training"] for row in rows] == pytest.approx(expected.tolist(), nan_ok=True)
    assert seen[1].sum() > 900


def test_last_kl_is_the_kl_of_the_batch():
    module = tiny_module()
    fit(module=module, max_epochs=1)
    module.train(False)
    module.decoder = DiscretizedGaussian(17)
    t = torch.tensor([1, 5, 20])
    pred = module.denoiser.predict(torch.zeros(3, 1, 8, 8), t, torch.randn(3, 1, 8, 8))
    module._both_forms(pred, torch.ones(3))
    assert module.last_kl[0].tolist() == [5, 20]
    assert torch.equal(module.last_kl[1], kl_forms(module.denoiser, pred.select(torch.tensor([1, 2])))[0])


def test_the_profile_is_the_same_on_two_processes():
    tables = []
    for count in (1, 2):
        run = trainer(
            callbacks=ELBOProfile(),
            devices=count,
            strategy="auto" if count == 1 else "ddp_fork",
            default_root_dir=str(count),
        )
        run.test(tiny_module(), Few(), verbose=False)
        tables.append(table(f"{count}/profile/test_elbo_profile_0000000.csv"))
    for one, two in zip(*tables, strict=True):
        assert one == pytest.approx(two, rel=1e-5, nan_ok=True)


def test_other_modules_and_bad_settings_are_refused():
    for callback in (ELBOProfile(), Performance()):
        with pytest.raises(ValueError, match="DDPM, not of a BoringModel"):
            trainer(callbacks=callback).fit(BoringModel())
    with pytest.raises(ValueError, match="every_n_epochs = 0 of ELBOProfile"):
        ELBOProfile(every_n_epochs=0)


# --- raw beside averaged, and speed


def test_the_bound_of_the_raw_weights_stands_beside_that_of_the_average():
    module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    run = fit(EMA(0.9, raw_bound=True), module=module, data=Few(batch_size=256), enable_checkpointing=True)
    logged = {key: float(run.callback_metrics[key]) for key in ("val/bpd", "val/bpd_raw")}
    checkpoint = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    for key, weights in (("val/bpd", "state_dict"), ("val/bpd_raw", "current_model_state")):
        module.load_state_dict(checkpoint[weights])
        (found,) = trainer(limit_val_batches=1).validate(module, Few(), verbose=False)
        assert found["val/bpd"] == pytest.approx(logged[key], abs=1e-5)
    assert logged["val/bpd"] != logged["val/bpd_raw"]
    assert "val/bpd_raw" not in fit(EMA(0.9)).callback_metrics


@pytest.mark.parametrize("accumulate", [1, 2])
def test_performance_is_logged_with_the_other_metrics(accumulate):
    module = tiny_module()
    run = fit(
        Performance(),
        module=module,
        data=digits(batch_size=64),
        max_epochs=1,
        log_every_n_steps=3,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(".", "", ""),
    )
    with Path("metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["perf/images_per_s"]]
    assert len(rows) == run.global_step // 3
    for row in rows:
        assert float(row["perf/images_per_s"]) > 0
        assert 0 < float(row["perf/outside_network"]) < 1
        assert 0.05 < float(row["perf/peak_memory_gib"]) < 100
        assert row["train/loss"]
    assert not module.denoiser.network._forward_hooks


def test_time_outside_the_network_is_told_from_time_inside(monkeypatch):
    class Clock:
        """Stands still but for what is added to it."""

        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("lit_ddpm.callbacks.performance.time", clock)

    class ThreeSeconds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x_t, t):
            clock.now += 3
            return self.weight * x_t

    class OneSecond(DDPM):
        def on_train_batch_start(self, batch, batch_idx):
            clock.now += 1

    run = fit(
        Performance(),
        module=tiny_module(OneSecond, network=ThreeSeconds()),
        max_epochs=2,
        num_sanity_val_steps=1,
        log_every_n_steps=2,
        logger=CSVLogger(".", "", ""),
    )
    assert run.global_step == 8
    with Path("metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["perf/images_per_s"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7]
    for row in rows:  # validation between the epochs is left out
        assert float(row["perf/outside_network"]) == pytest.approx(1 / 4)
        assert float(row["perf/images_per_s"]) == pytest.approx(256 / 4)
