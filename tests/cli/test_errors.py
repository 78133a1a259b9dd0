"""Bad input ends in an error of one sentence."""

import re
import shutil
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import CONFIGS, FIT_DIGITS, RNG, Malicious, copy_run, error_of, write_image_folder
from PIL import Image

from lit_ddpm import InputError, LogSNRSchedule, UNet
from lit_ddpm.__main__ import main
from lit_ddpm._internal.checks import NonFiniteError
from lit_ddpm.cli.errors import one_sentence
from lit_ddpm.training.checkpoint import load_checkpoint

METRICS = [*FIT_DIGITS, "--trainer.callbacks+=lit_ddpm.callbacks.SampleMetrics"]
INCEPTION = ["--trainer.callbacks.extractor.weights_path=nowhere.pth"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            [*FIT_DIGITS, "--model.network.widht=3"],
            "model.network: Option 'widht' is not accepted; lit_ddpm.UNet takes in_ch",
        ),
        ([*FIT_DIGITS, "--model.schedule.num_steps=many"], "model.schedule.num_steps: .*int.*many"),
        ([*FIT_DIGITS, "--model.schedule.num_steps=1"], "num_steps = 1"),
        ([*FIT_DIGITS, "--model.objective=NoSuchLoss"], "model.objective.*NoSuchLoss"),
        ([*FIT_DIGITS, "--model.variance=fixed"], "model.variance.*fixed|variance.*posterior.*beta"),
        (
            [*FIT_DIGITS, "--model.decoder=DiscretizedGaussian", "--model.decoder.levels=256"],
            "levels = 256 .* levels = 17",
        ),
        ([*FIT_DIGITS, "--model.network.in_channels=3"], r"in_channels = 3 .* image_shape = \[1, 8, 8\]"),
        (
            [*FIT_DIGITS, "--model.sampler=AncestralSampler", "--model.sampler.num_steps=1001"],
            "num_steps = 1001 .*at most the schedule.s 1000",
        ),
        ([*FIT_DIGITS, "--model.optimizer.lr=-1"], "AdamW: .*learning rate: -1"),
        (
            [*FIT_DIGITS, "--model.lr_scheduler=LinearLR", "--model.lr_scheduler.start_factor=3"],
            "LinearLR: Starting multiplicative factor",
        ),
        ([*FIT_DIGITS, "--data.batch_size=5000"], "batch_size = 5000"),
        ([*FIT_DIGITS, "--trainer.accelerator=gpu"], "gpu"),
        ([*FIT_DIGITS, "--trainer.no_such_thing=1"], "trainer.no_such_thing"),
        ([*METRICS, "--trainer.callbacks.num_samples=1"], "num_samples = 1 of SampleMetrics must be at least 2"),
        (
            [*FIT_DIGITS, "--trainer.callbacks=lit_ddpm.callbacks.SampleGrid", "--trainer.callbacks.num_images=0"],
            "num_images = 0 of SampleGrid must be at least 1",
        ),
        ([*METRICS, "--trainer.callbacks.num_sample=9"], "'num_sample' is not accepted"),
        ([*METRICS, "--trainer.callbacks.extractor=NoSuchFeatures"], "extractor.*NoSuchFeatures"),
        (
            [*METRICS, "--trainer.callbacks.extractor=InceptionFeatures", *INCEPTION],
            r"weights_path = nowhere.pth of InceptionFeatures does not exist",
        ),
        (
            [*FIT_DIGITS, "--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks.mode=none"],
            "BatchSizeFinder: `mode` should be",
        ),
        ([*FIT_DIGITS, "--trainer.num_nodes=0"], "`num_nodes` must be a positive integer"),
        ([*FIT_DIGITS, "--trainer.callbacks+=lit_ddpm.callbacks.EMA"], "more than one stateful callback of type `EMA`"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["test", "--ckpt_path", "nowhere.ckpt"], "ckpt_path = nowhere.ckpt does not exist"),
        (["test", "--config", "digits", "--ckpt_path", "best"], "ckpt_path = best does not exist"),
        (["train"], "train.*fit.*predict"),
        (
            [*FIT_DIGITS, "--model.parametrization=EpsParametrization", "--model.schedule.zero_terminal_snr=true"],
            r"EpsParametrization cannot be used .*SNR\(T\) is zero",
        ),
    ],
)
def test_bad_input_is_one_sentence(capsys, args, message):
    assert re.search(message, error_of(capsys, [*args])), message
    assert not list(Path().rglob("*.ckpt"))


def test_an_unknown_key_in_yaml_is_one_sentence(capsys, tmp_path):
    config = yaml.safe_load((CONFIGS / "digits.yaml").read_text())
    config["extends"] = str(CONFIGS / config["extends"])
    config["model"]["init_args"]["schedule"]["init_args"]["minimum"] = 3
    Path("typo.yaml").write_text(yaml.safe_dump(config))
    message = error_of(capsys, ["fit", "--config", "typo.yaml"])
    assert (
        "model.schedule: Option 'minimum' is not accepted; lit_ddpm.LogSNRSchedule takes num_steps, log_snr_start"
        in message
    )


def test_a_broken_checkpoint_is_one_sentence(run, capsys, tmp_path):
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("text.ckpt").write_text("not a checkpoint")
    torch.save({"weights": 1}, "other.ckpt")
    for path in ("half.ckpt", "text.ckpt"):
        assert f"ckpt_path = {path} is truncated" in error_of(capsys, ["test", "--ckpt_path", path])
    assert "other.ckpt has no state_dict" in error_of(capsys, ["test", "--ckpt_path", "other.ckpt"])


def test_resuming_skips_a_damaged_checkpoint(run, monkeypatch, tmp_path, capsys):
    here = copy_run(run, monkeypatch, tmp_path)
    last = here / "checkpoints" / "last.ckpt"
    shutil.copy(last, last.with_name("before.ckpt"))
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"last.ckpt is truncated.*resuming from .*\.ckpt of step 6 instead"):
        main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=3", "--trainer.limit_val_batches=0"])
    assert torch.load(last, weights_only=True)["global_step"] == 9
    last.write_bytes(last.read_bytes()[:-100])
    assert "is truncated" in error_of(
        capsys, ["test", "--ckpt_path", str(last)]
    )  # no other checkpoint is tested instead


def test_a_checkpoint_of_another_network_is_one_sentence(run, capsys):
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["network"]["init_args"]["width"] = 16
    torch.save(checkpoint, "unfit.ckpt")
    assert "does not fit the network" in error_of(capsys, ["test", "--ckpt_path", "unfit.ckpt"])


def test_a_malicious_checkpoint_does_not_run(capsys):
    torch.save({"state_dict": {}, "evil": Malicious()}, "evil.ckpt")
    assert "loads safely" in error_of(capsys, ["test", "--ckpt_path", "evil.ckpt"])
    assert not Path("evil_was_here").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*FIT_DIGITS, "--trainer.default_root_dir=file/run"], "run directory file/run is not writable"),
        (
            [*FIT_DIGITS, "--trainer.default_root_dir=file/run", "--number_run"],
            "run directory file is not writable",
        ),
        (["predict", "--config", "digits", "--output_dir=file/images"], "directory file/images is not writable"),
        (
            ["compare", "--config", "digits", "--objectives=kl", "--output_dir=file/all"],
            "directory file/all is not writable",
        ),
    ],
)
def test_an_unwritable_directory_is_one_sentence(args, message, capsys):
    Path("file").write_text("")
    assert message in error_of(capsys, args)


def test_ema_of_sharded_weights_is_refused(capsys):
    one = ["--trainer.devices=1", "--trainer.strategy.data_parallel_size=1", "--trainer.accelerator=cpu"]
    sharded = ["--config", str(CONFIGS / "trainer" / "fsdp.yaml"), "--trainer.callbacks=EMA", *one]
    line = error_of(capsys, [*FIT_DIGITS, *sharded])
    assert "EMA does not work with ModelParallelStrategy, which shards the weights: train without EMA" in line


QUICK = [*FIT_DIGITS, "--trainer.callbacks=[]", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--trainer.callbacks=helpers.FailingCallback"], RuntimeError),
        (["--model.network=helpers.FailingNetwork"], TypeError),
        (["--model.network=helpers.FailingNetwork", "--model.network.kind=value"], ValueError),
        (["--data=helpers.FailingData"], FileNotFoundError),
    ],
)
def test_an_error_in_a_users_class_keeps_its_traceback(args, error):
    with pytest.raises(error) as caught:
        main([*QUICK, *args])
    assert "helpers/training.py" in "".join(traceback.format_exception(caught.value))


FAULTS = """
import lightning
import torch
from lit_ddpm import DDPM, Objective
from lit_ddpm.data import DigitsDataModule


def fail(kind):
    if kind == "file":
        open("mine.npz")
    raise {"value": ValueError, "type": TypeError}[kind]("mine")


class MyNetwork(torch.nn.Module):
    def __init__(self, kind: str = "value"):
        fail(kind)


class MyCallback(lightning.Callback):
    def __init__(self, kind: str = "value"):
        fail(kind)


class MyData(DigitsDataModule):
    def __init__(self, kind: str = "value"):
        fail(kind)


class MyDDPM(DDPM):
    def setup(self, stage):
        fail("file")


class MyObjective(Objective):
    def __call__(self, denoiser, pred):
        fail("value")


class MyOptimizer(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.1, kind: str = "value"):
        super().__init__(params, lr=lr)
        fail(kind)


class MyScheduler(torch.optim.lr_scheduler.StepLR):
    def __init__(self, optimizer, kind: str = "value"):
        fail(kind)
"""


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--model.network=my_faults.MyNetwork"], ValueError),
        (["--model.network=my_faults.MyNetwork", "--model.network.kind=type"], TypeError),
        (["--trainer.callbacks=my_faults.MyCallback"], ValueError),
        (["--trainer.callbacks+=my_faults.MyCallback", "--trainer.callbacks.kind=file"], FileNotFoundError),
        (["--data=my_faults.MyData"], ValueError),
        (["--model=my_faults.MyDDPM"], FileNotFoundError),
        (["--model.objective=my_faults.MyObjective"], ValueError),
        (["--model.optimizer=my_faults.MyOptimizer"], ValueError),
        (["--model.optimizer=my_faults.MyOptimizer", "--model.optimizer.lr=-1"], ValueError),
        (["--model.lr_scheduler=my_faults.MyScheduler", "--model.lr_scheduler.kind=type"], TypeError),
    ],
)
def test_a_fault_of_a_users_class_keeps_its_traceback(args, error, monkeypatch, tmp_path):
    (tmp_path / "my_faults.py").write_text(FAULTS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error) as caught:
        main([*QUICK, *args])
    assert type(caught.value) is error  # not an InputError
    assert "my_faults.py" in "".join(traceback.format_exception(caught.value))
    assert "Union" not in str(caught.value)


def test_a_bad_setting_in_a_users_class_is_one_sentence(capsys):
    assert "dropout = 2.0 of UNet" in error_of(capsys, [*QUICK, "--model.network=helpers.FailingSettings"])


def test_a_training_that_stops_is_one_sentence(capsys):
    settings = ["--model.optimizer.lr=1e30", "--model.lr_scheduler=null", "--trainer.limit_train_batches=15"]
    assert "the gradients are not finite at step" in error_of(capsys, [*QUICK, *settings])


def test_bad_input_is_one_type_of_error():
    for act in (lambda: UNet(dropout=2.0), lambda: LogSNRSchedule(num_steps=1), lambda: load_checkpoint(Path("none"))):
        with pytest.raises(InputError):
            act()
    assert issubclass(InputError, ValueError)
    assert issubclass(NonFiniteError, InputError)
    assert issubclass(NonFiniteError, FloatingPointError)


@pytest.mark.parametrize("setting", ["--model.schedule.num_steps=1", "--model.schedule.num_steps=many"])
def test_an_environment_variable_shows_every_traceback(monkeypatch, capsys, setting):
    error_of(capsys, [*QUICK, setting])
    monkeypatch.setenv("LIT_DDPM_TRACEBACK", "1")
    with pytest.raises(Exception, match="num_steps") as caught:
        main([*QUICK, setting])
    assert not isinstance(caught.value, SystemExit)


def streamed(*args) -> list[str]:
    """A fit on images that a worker process reads; more than those of validation and testing are truncated."""
    write_image_folder("images", count=40, size=(64, 64), classes=0)
    for path in list(Path("images").glob("*.png"))[:10]:
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    settings = {"root": "images", "in_memory": "false", "num_workers": "1", "batch_size": "4", "image_size": "8"}
    network = ["--model.network=UNet", "--model.network.in_channels=3", "--model.network.width=8"]
    trial = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    return ["fit", *(f"--data.{name}={value}" for name, value in settings.items()), *network, *trial, *args]


def test_a_damaged_image_in_a_worker_is_one_sentence(capsys):
    args = streamed()
    args.insert(1, "--data=ImageFolderDataModule")
    assert re.search(r"error: images/\d+.png is damaged .*: remove it\.$", error_of(capsys, args))


def test_an_error_of_a_users_dataset_in_a_worker_keeps_its_traceback():
    args = streamed()
    args.insert(1, "--data=helpers.FailingFiles")
    with pytest.raises(RuntimeError, match="mine"):
        main(args)


def test_plain_messages_are_unchanged():
    assert one_sentence("plain") == "plain"
