"""The project as its users see it: the commands of the README with a small network, and the model in Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch

from digits_inpainting import HuberLoss, InpaintingDDPM, InpaintingNetwork, MaskedDigits
from lit_ddpm import (
    X0MSE,
    Denoiser,
    DiscretizedGaussian,
    KLWeighting,
    LinearSchedule,
    X0Parametrization,
    variational_bound,
)
from lit_ddpm.__main__ import main
from lit_ddpm.data import to_float

CONFIG = Path(__file__).parents[1] / "digits_inpainting.yaml"
COMMAND = shutil.which("lit-ddpm", path=str(Path(sys.executable).parent))
CHECKPOINT = "runs/inpainting/checkpoints/last.ckpt"
SMALL = [
    "--model.network.width=32",
    "--model.network.depth=3",
    "--model.schedule.num_steps=32",
    "--model.sampler.num_steps=16",
    "--trainer.max_epochs=4",
    "--trainer.check_val_every_n_epoch=4",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with a run of the command `lit-ddpm fit`."""
    directory = tmp_path_factory.mktemp("project")
    command = [COMMAND, "fit", "--config", str(CONFIG), *SMALL]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def model(project):
    return InpaintingDDPM.load_from_checkpoint(project / CHECKPOINT)


@pytest.fixture(scope="module")
def digits():
    """Ten test images in [-1, 1], their masks and their conditions."""
    split = MaskedDigits().splits()["test"]
    images, _, cond = split.__getitems__(range(10))
    return to_float(images, 17), cond[:, 1:].bool(), cond


def test_the_bound_is_that_of_a_conditional_model(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    main(["test", "--ckpt_path", CHECKPOINT])  # as the command, without the seconds that a process takes to start
    printed = capsys.readouterr().out
    assert "the bound of a conditional model: x_0 given cond" in printed
    assert "histogram" not in printed
    assert "test/bits_per_missing_pixel" in Path("runs/inpainting/metrics.csv").read_text()


def test_predict_draws_under_the_conditions_of_the_test_images(project, monkeypatch):
    monkeypatch.chdir(project)
    main(["predict", "--ckpt_path", CHECKPOINT, "--num_samples=4", "--output_dir=drawn"])
    assert len(list(Path("drawn").glob("*.png"))) == 4
    assert json.loads(Path("drawn/samples.json").read_text())["conditions"] == "test split of MaskedDigits"


def test_a_checkpoint_contains_the_classes_of_the_project(model):
    network = model.denoiser.network
    assert isinstance(network, InpaintingNetwork)
    assert network.first.out_channels == 32
    assert network.time == "log_snr"  # set by the shipped configuration `digits`
    assert isinstance(model.objective, HuberLoss)
    assert isinstance(model.objective.weighting, KLWeighting)


def test_a_model_built_in_python_is_loaded(tmp_path, digits):
    network = InpaintingNetwork(width=8, depth=1)
    model = InpaintingDDPM(network, LinearSchedule(20), X0Parametrization(), HuberLoss(delta=0.25))
    trainer = lightning.Trainer(max_steps=1, limit_val_batches=0, logger=False, default_root_dir=tmp_path)
    trainer.fit(model, MaskedDigits())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = InpaintingDDPM.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.objective == HuberLoss(delta=0.25)
    images, known, _ = digits
    assert torch.equal(loaded.complete(images, known), model.complete(images, known))


def test_completed_images_keep_their_known_pixels(model, digits):
    images, known, cond = digits
    completed = model.complete(images, known, seed=1)
    assert torch.equal(completed[known], images[known])
    assert torch.equal(completed, model.sample(10, seed=1, cond=cond))
    assert not torch.equal(completed, model.complete(images, known, seed=2))


def test_the_condition_matters(model, digits):
    images, _, cond = digits
    bounds = [variational_bound(model.denoiser, images, DiscretizedGaussian(17), cond=c) for c in (cond, cond.flip(0))]
    right, wrong = (bound.total for bound in bounds)
    assert bool((right < wrong).all())


def test_a_block_is_missing_from_every_image(digits):
    images, known, cond = digits
    assert (~known).sum((1, 2, 3)).tolist() == [16] * 10
    assert torch.equal(cond[:, :1], images.where(known, 0))
    with pytest.raises(ValueError, match="block = 9 of MaskedDigits must be 1 to 8"):
        MaskedDigits(block=9)


def test_the_huber_loss_of_small_errors_is_the_squared_error(digits):
    images, _, cond = digits
    denoiser = Denoiser(InpaintingNetwork(width=8, depth=1), LinearSchedule(20), X0Parametrization())
    pred = denoiser.predict(images, torch.arange(1, 11), torch.randn_like(images), cond=cond)
    huber, mse = HuberLoss(100.0, KLWeighting())(denoiser, pred), X0MSE(KLWeighting())(denoiser, pred)
    torch.testing.assert_close(huber.double(), mse)
    assert bool((HuberLoss(0.01)(denoiser, pred) < X0MSE()(denoiser, pred)).all())
