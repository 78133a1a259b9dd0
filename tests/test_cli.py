import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import compile_without_code
from PIL import Image
from sets import write_cifar, write_mnist

from lit_ddpm import DDPM
from lit_ddpm.__main__ import main, with_config_of_run
from lit_ddpm.cli.errors import is_about_input, one_sentence
from lit_ddpm.metrics.inception import InceptionFeatures

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = [
    "--model.network.width=8",
    "--model.network.num_blocks=1",
    "--model.network.head_channels=8",
    "--model.schedule.num_steps=64",
    "--model.sampler.num_steps=16",
    "--model.num_val_timesteps=4",
    "--data.eval_batch_size=360",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def fit(*args):
    settings = [
        "--trainer.max_epochs=2",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.limit_train_batches=3",
        "--trainer.log_every_n_steps=1",
    ]
    settings += ["--trainer.callbacks.every_n_epochs=1"]
    main(["fit", "--config", str(CONFIGS / "digits.yaml"), *SMALL, *settings, *args])


def error_of(capsys, args) -> str:
    """The one line that a command prints before it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lit-ddpm: error: ")
    return last


@pytest.mark.parametrize("config", sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml")))
def test_every_shipped_config_runs(config, monkeypatch):
    """A configuration without data is an overlay: on the one that its name begins with, or on that of the digits."""
    content = yaml.safe_load((CONFIGS / config).read_text())
    base = []
    if "data" not in content:
        named = CONFIGS / f"{Path(config).stem.split('_')[0]}.yaml"
        named = named if named.exists() else CONFIGS / "digits.yaml"
        base, content = ["--config", str(named)], yaml.safe_load(named.read_text())
    name = content["data"].get("init_args", {}).get("dataset", "")
    small = []
    if name:
        write_mnist("data") if name == "MNIST" else write_cifar("data", monkeypatch)
        monkeypatch.setattr(InceptionFeatures, "load", lambda self: SmallInception())
        small = ["--model.network.width=32", "--data.batch_size=2", "--data.eval_batch_size=2", "--data.val_size=10"]
    if "fsdp" in config:
        small = ["--trainer.devices=1", "--trainer.strategy.data_parallel_size=1", "--trainer.accelerator=cpu"]
    if "compile" in config:
        monkeypatch.setattr(torch.nn.Module, "compile", compile_without_code)
    main(["fit", *base, "--config", str(CONFIGS / config), *small, "--trainer.fast_dev_run=true"])


class SmallInception(torch.nn.Module):
    """Takes what Inception takes."""

    def forward(self, images):
        assert images.shape[1] == 3
        assert images.dtype == torch.uint8
        features = images.float().mean((2, 3))
        return features, features


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run of the shipped configuration, and the directory it lies in."""
    place = tmp_path_factory.mktemp("run")
    before = os.getcwd()
    os.chdir(place)
    try:
        fit()
    finally:
        os.chdir(before)
    return place / "runs" / "digits"


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_is_one_directory_with_everything_in_it(run):
    for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "samples"):
        assert (run / name).exists(), name
    columns = set(metrics(run)[0])
    assert {"train/loss", "train/kl", "train/kl_from_x0_mse", "train/form_gap", "train/x0_mse"} <= columns
    assert {"val/bpd", "val/bpd_prior", "val/bpd_diffusion", "val/bpd_reconstruction", "val/bpd_se_noise"} <= columns
    assert {f"sample/{name}_digits" for name in ("fid", "kid", "kid_std", "is")} <= columns
    assert json.loads((run / "sample_metrics.jsonl").read_text())["protocol"]["weights"] == "averaged"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["objective"]["class_path"] == "lit_ddpm.X0MSE"
    assert any((run / "tensorboard").iterdir())
    assert {path.name for path in (run / "samples").iterdir()} == {"step_0000006.png", "trajectory_0000006.png"}
    assert {"perf/images_per_s", "perf/outside_network", "perf/peak_memory_gib"} <= columns
    assert (run / "profile" / "objective_weights.png").exists()


def copy_of(run, monkeypatch, tmp_path):
    shutil.copytree(run.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs/digits")


def test_a_checkpoint_alone_is_enough_to_test_it(run, monkeypatch, tmp_path, capsys):
    here = copy_of(run, monkeypatch, tmp_path)
    before = metrics(here)
    results = []
    for size in (360, 360, 77):
        main(["test", "--ckpt_path", str(here / "checkpoints" / "best.ckpt"), f"--data.eval_batch_size={size}"])
        results.append(json.loads((here / "ledger.json").read_text()))
    table = capsys.readouterr().out
    for word in ("prior", "diffusion", "reconstruction", "total", "± images", "± noise", "per-pixel histogram"):
        assert word in table
    assert "360 images, 64 network calls an image" in table
    assert "1,000 generated and 1,257 real images" in table
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
    rows = metrics(here)  # the test went on with the metrics of the fit
    assert len(rows) == len(before) + 3
    assert [row["val/bpd"] for row in rows[: len(before)]] == [row["val/bpd"] for row in before]


def test_validate_is_the_bound_that_chose_the_checkpoint(run, monkeypatch, tmp_path):
    here = copy_of(run, monkeypatch, tmp_path)
    main(["validate", "--ckpt_path", str(here / "checkpoints" / "last.ckpt"), "--trainer.enable_progress_bar=false"])
    values = [row["val/bpd"] for row in metrics(here) if row["val/bpd"]]
    assert float(values[-1]) == pytest.approx(float(values[-2]), abs=1e-5)


def test_predict_writes_images_and_one_array(run, monkeypatch, tmp_path, capsys):
    here = copy_of(run, monkeypatch, tmp_path)
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


def test_a_second_start_is_refused_and_a_resumed_one_goes_on(run, monkeypatch, tmp_path, capsys):
    here = copy_of(run, monkeypatch, tmp_path)
    last = here / "checkpoints" / "last.ckpt"
    message = error_of(capsys, ["fit", "--config", str(CONFIGS / "digits.yaml")])
    assert "runs/digits already holds a run: continue it with --ckpt_path runs/digits/checkpoints/last.ckpt" in message
    before = metrics(here)
    main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=3"])
    assert len(metrics(here)) > len(before)
    assert metrics(here)[0]["train/loss"] == before[0]["train/loss"]
    assert torch.load(last, weights_only=True)["epoch"] == 2


def test_settings_that_a_checkpoint_overrules_are_said(run, monkeypatch, tmp_path):
    here = copy_of(run, monkeypatch, tmp_path)
    last = str(here / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match=r"checkpoint's own settings are used for model .*optimizer\.init_args\.lr"):
        main(["fit", "--ckpt_path", last, "--trainer.max_epochs=3", "--model.optimizer.lr=0.5"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*checkpoint's own settings.*")
        main(["fit", "--ckpt_path", last, "--trainer.max_epochs=4"])


def test_load_from_checkpoint_gives_samples_in_python(run):
    module = DDPM.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert module.sample(2, seed=0).shape == (2, 1, 8, 8)


EXTRACTOR = """
trainer:
  callbacks:
    - class_path: lit_ddpm.callbacks.SampleMetrics
      init_args:
        extractor:
          class_path: test_cli.Brightness
          init_args: {bins: 3}
        num_val_samples: 32
        val_sampler: {class_path: lit_ddpm.AncestralSampler, init_args: {num_steps: 4}}
"""


class Brightness(torch.nn.Module):
    name = "brightness"

    def __init__(self, bins: int = 2):
        super().__init__()
        self.bins = bins

    def forward(self, images):
        return images.flatten(1).float().quantile(torch.linspace(0, 1, self.bins), dim=1).T


def test_an_extractor_of_a_users_own_is_named_in_yaml():
    Path("extractor.yaml").write_text(EXTRACTOR)
    main([*DIGITS, "--config", "extractor.yaml", *SMALL, "--trainer.max_epochs=20", "--trainer.limit_train_batches=2"])
    values = [row["sample/fid_brightness"] for row in metrics(Path("runs/digits")) if row["sample/fid_brightness"]]
    assert len(values) == 1
    assert "sample/is_brightness" not in metrics(Path("runs/digits"))[0]


# --- bad input

DIGITS = ["fit", "--config", str(CONFIGS / "digits.yaml")]
METRICS = [*DIGITS, "--trainer.callbacks+=lit_ddpm.callbacks.SampleMetrics"]
INCEPTION = ["--trainer.callbacks.extractor.weights_path=nowhere.pth"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            [*DIGITS, "--model.network.widht=3"],
            "model.network: Option 'widht' is not accepted; lit_ddpm.UNet takes in_ch",
        ),
        ([*DIGITS, "--model.schedule.num_steps=many"], "model.schedule.num_steps: .*int.*many"),
        ([*DIGITS, "--model.schedule.num_steps=1"], "num_steps = 1"),
        ([*DIGITS, "--model.objective=NoSuchLoss"], "model.objective.*NoSuchLoss"),
        ([*DIGITS, "--model.variance=fixed"], "model.variance.*fixed|variance.*posterior.*beta"),
        ([*DIGITS, "--model.decoder.levels=256"], "levels = 256 .* levels = 17"),
        ([*DIGITS, "--model.network.in_channels=3"], r"in_channels = 3 .* image_shape = \[1, 8, 8\]"),
        (
            [*DIGITS, "--model.sampler=AncestralSampler", "--model.sampler.num_steps=999"],
            "num_steps = 999 .* 256|at most",
        ),
        ([*DIGITS, "--model.optimizer.lr=-1"], "learning rate: -1"),
        ([*DIGITS, "--data.batch_size=5000"], "batch_size = 5000"),
        ([*DIGITS, "--trainer.accelerator=gpu"], "gpu"),
        ([*DIGITS, "--trainer.no_such_thing=1"], "trainer.no_such_thing"),
        ([*METRICS, "--trainer.callbacks.num_samples=1"], "num_samples = 1 of SampleMetrics must be at least 2"),
        ([*METRICS, "--trainer.callbacks.num_sample=9"], "'num_sample' is not accepted"),
        ([*METRICS, "--trainer.callbacks.extractor=NoSuchFeatures"], "extractor.*NoSuchFeatures"),
        (
            [*METRICS, "--trainer.callbacks.extractor=InceptionFeatures", *INCEPTION],
            r"weights_path = nowhere.pth of InceptionFeatures: there is no such file",
        ),
        ([*DIGITS, "--trainer.callbacks+=lit_ddpm.callbacks.EMA"], "more than one stateful callback of type `EMA`"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["test", "--ckpt_path", "nowhere.ckpt"], "ckpt_path = nowhere.ckpt: there is no such file"),
        (["train"], "train.*fit.*predict"),
        (
            [*DIGITS, "--model.parametrization=EpsParametrization", "--model.schedule.zero_terminal_snr=true"],
            r"EpsParametrization cannot be used .*SNR\(T\) is zero",
        ),
    ],
)
def test_bad_input_is_one_sentence(capsys, args, message):
    import re

    assert re.search(message, error_of(capsys, [*args])), message
    assert not list(Path().rglob("*.ckpt"))


def test_an_unknown_key_in_yaml_is_one_sentence(capsys, tmp_path):
    config = yaml.safe_load((CONFIGS / "digits.yaml").read_text())
    config["model"]["init_args"]["schedule"]["init_args"]["minimum"] = 3
    Path("typo.yaml").write_text(yaml.safe_dump(config))
    message = error_of(capsys, ["fit", "--config", "typo.yaml"])
    assert (
        "model.schedule: Option 'minimum' is not accepted; lit_ddpm.LogSNRSchedule takes min, max, num_steps" in message
    )


def test_a_broken_checkpoint_is_one_sentence(run, capsys, tmp_path):
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("text.ckpt").write_text("not a checkpoint")
    torch.save({"weights": 1}, "other.ckpt")
    for path in ("half.ckpt", "text.ckpt"):
        assert f"ckpt_path = {path} is truncated" in error_of(capsys, ["test", "--ckpt_path", path])
    assert "other.ckpt holds no state_dict" in error_of(capsys, ["test", "--ckpt_path", "other.ckpt"])


def test_a_damaged_checkpoint_is_passed_over_when_going_on(run, monkeypatch, tmp_path, capsys):
    here = copy_of(run, monkeypatch, tmp_path)
    last = here / "checkpoints" / "last.ckpt"
    shutil.copy(last, last.with_name("before.ckpt"))
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"last.ckpt is truncated.*going on from .*\.ckpt instead, of step 6"):
        main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=3", "--trainer.limit_val_batches=0"])
    assert torch.load(last, weights_only=True)["global_step"] == 9
    last.write_bytes(last.read_bytes()[:-100])
    assert "is truncated" in error_of(capsys, ["test", "--ckpt_path", str(last)])  # of another one nobody asked


def test_an_unfit_checkpoint_is_one_sentence(run, capsys):
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["network"]["init_args"]["width"] = 16
    torch.save(checkpoint, "unfit.ckpt")
    assert "does not fit the network" in error_of(capsys, ["test", "--ckpt_path", "unfit.ckpt"])


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil_was_here",))


def test_a_malicious_checkpoint_does_not_run(capsys):
    torch.save({"state_dict": {}, "evil": Evil()}, "evil.ckpt")
    assert "loads safely" in error_of(capsys, ["test", "--ckpt_path", "evil.ckpt"])
    assert not Path("evil_was_here").exists()


def test_an_unwritable_run_directory_is_one_sentence(capsys):
    Path("file").write_text("")
    message = error_of(capsys, [*DIGITS, "--trainer.default_root_dir=file/run"])
    assert "run directory file/run cannot be written to" in message


def test_a_mistake_in_a_program_keeps_its_traceback():
    with pytest.raises(ValueError, match="mine") as caught:
        raise ValueError("mine")
    assert not is_about_input(caught.value)
    with pytest.raises(RuntimeError, match="mine"):
        main([*DIGITS, *SMALL[:5], "--trainer.fast_dev_run=true", "--trainer.callbacks+=test_cli.Broken"])


class Broken(__import__("lightning").Callback):
    def on_train_start(self, trainer, pl_module):
        raise RuntimeError("mine")


def test_the_configuration_beside_a_checkpoint_is_added(run):
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    config = ["--config", str(run / "config.yaml")]
    assert with_config_of_run(["test", "--ckpt_path", checkpoint]) == ["test", *config, "--ckpt_path", checkpoint]
    assert with_config_of_run(["test", f"--ckpt_path={checkpoint}"])[1:3] == config
    for args in (["test", "-c", "x", "--ckpt_path", checkpoint], ["fit"], ["test", "--ckpt_path"], []):
        assert with_config_of_run(args) == args


def test_messages_that_are_not_nested_stay_as_they_are():
    assert one_sentence("plain") == "plain"


# --- as a user has it


def lit_ddpm(*args, timeout=240):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "lit_ddpm", *args], capture_output=True, text=True, timeout=timeout, env=environment
    )


TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu"]
SHORT = [*SMALL, "--trainer.max_epochs=3", "--trainer.limit_train_batches=2", "--data.batch_size=32"]
SHORT += ["--trainer.check_val_every_n_epoch=2"]  # the end is not validated


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """The directory of a fit with strategy ddp, which starts a second process of the command."""
    place = tmp_path_factory.mktemp("two") / "run"
    directory = f"--trainer.default_root_dir={place}"
    done = lit_ddpm(*DIGITS, *SHORT, *TWO, "--trainer.strategy=ddp", "--trainer.callbacks.every_n_epochs=1", directory)
    assert done.returncode == 0, done.stderr
    return place


def test_two_processes_measure_what_one_does(run_of_two):
    test = ["test", "--ckpt_path", str(run_of_two / "checkpoints" / "best.ckpt"), "--data.eval_batch_size=77"]
    test += ["--trainer.callbacks=[]"]  # the bound alone
    done = lit_ddpm(*test, *TWO, "--trainer.strategy=ddp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("per-pixel histogram") == 1
    two = json.loads((run_of_two / "ledger.json").read_text())
    main([*test, "--trainer.devices=1", "--trainer.strategy=auto"])
    one = json.loads((run_of_two / "ledger.json").read_text())
    assert two["terms"]["total"]["value"] == pytest.approx(one["terms"]["total"]["value"], abs=1e-5)


def test_sharded_weights_learn_what_whole_ones_learn(run_of_two):
    """The first process alone draws, in validation and at the end, so the network is called unequally often."""
    done = lit_ddpm(*DIGITS, *SHORT, "--config", str(CONFIGS / "trainer" / "fsdp.yaml"), *TWO)
    assert done.returncode == 0, done.stderr
    assert {f"step_{step:07d}.png" for step in (4, 6)} <= {p.name for p in Path("runs/digits/samples").iterdir()}
    sharded = torch.load("runs/digits/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    whole = torch.load(run_of_two / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    assert sharded.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], rtol=0, atol=1e-6)


def test_averages_of_sharded_weights_are_refused(capsys):
    one = ["--trainer.devices=1", "--trainer.strategy.data_parallel_size=1", "--trainer.accelerator=cpu"]
    sharded = ["--config", str(CONFIGS / "trainer" / "fsdp.yaml"), "--trainer.callbacks=EMA", *one]
    line = error_of(capsys, ["fit", "--config", str(CONFIGS / "digits.yaml"), *sharded])
    assert "EMA does not work with ModelParallelStrategy, which shards the weights: train without EMA" in line


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


def test_a_subclass_in_another_package_runs_through_the_same_command(monkeypatch, tmp_path):
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
    done = lit_ddpm("fit", "--model=my_package.MyDDPM", "--model.width=4", *few, "--trainer.default_root_dir=mine")
    assert done.returncode == 0, done.stderr
    (checkpoint,) = Path("mine/checkpoints").glob("*.ckpt")
    done = lit_ddpm("test", "--ckpt_path", str(checkpoint), "--data.eval_batch_size=360")
    assert done.returncode == 0, done.stderr
    assert "bits/dim" in done.stdout
    assert torch.load(checkpoint, weights_only=True)["state_dict"]["denoiser.network.net.0.weight"].shape[0] == 4

    monkeypatch.syspath_prepend(str(tmp_path))
    import my_package

    loaded = my_package.MyDDPM.load_from_checkpoint(checkpoint, weights_only=True)
    assert loaded.sample(2).shape == (2, 1, 8, 8)
    assert isinstance(loaded.objective, my_package.Huber)
