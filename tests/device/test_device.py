"""What a GPU must do as a CPU does; without one the same tests run on the CPU. ``benchmarks gpu`` runs them too."""

import copy

import pytest
import torch
from helpers import FewDigits, Recorder, same_weights, tiny_denoiser, tiny_module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from benchmarks.common.clock import synchronizations
from lit_ddpm import (
    DDPM,
    AdaptiveTimesteps,
    AncestralSampler,
    DDIMSampler,
    DiscretizedGaussian,
    DPMSolverSampler,
    PosteriorKL,
    UNet,
    variational_bound,
)
from lit_ddpm.callbacks import EMA, ChannelsLast
from lit_ddpm.data import to_float

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"


@pytest.fixture(autouse=True)
def _exact_arithmetic(monkeypatch):
    """Neither tf32 nor convolutions whose sums depend on the run."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def fit(module=None, *callbacks, **kwargs):
    run = trainer(**{"accelerator": "auto", "devices": 1, "max_epochs": 1, "callbacks": list(callbacks), **kwargs})
    run.fit(module or tiny_module(), FewDigits(batch_size=256))
    return run


def unet_module(**kwargs):
    return tiny_module(network=UNet(1, width=16, num_blocks=1, head_channels=8), **kwargs)


@pytest.mark.parametrize("num_timesteps", [None, 8])
def test_the_bound_is_that_of_the_cpu(num_timesteps):
    """The noise of an image is the same, and the terms differ by rounding."""
    denoiser = tiny_denoiser()
    images = to_float(torch.arange(6 * 64).reshape(6, 1, 8, 8) % 256, 256)
    cpu = variational_bound(denoiser, images, DiscretizedGaussian(256), num_timesteps)
    device = variational_bound(
        copy.deepcopy(denoiser).to(DEVICE), images.to(DEVICE), DiscretizedGaussian(256), num_timesteps
    )
    torch.testing.assert_close(device.total, cpu.total, rtol=1e-4, atol=0)
    torch.testing.assert_close(device.kl, cpu.kl, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(device.diffusion, cpu.diffusion, rtol=1e-3, atol=1e-6)
    assert device.total.device.type == "cpu"


@pytest.mark.parametrize("sampler", [AncestralSampler(8), DDIMSampler(8, eta=0.5), DPMSolverSampler(8)])
def test_samples_are_those_of_the_cpu(sampler):
    denoiser = tiny_denoiser()
    cpu = sampler(denoiser, (5, 1, 8, 8), seed=3)
    device = sampler(copy.deepcopy(denoiser).to(DEVICE), (5, 1, 8, 8), seed=3)
    assert device.device.type == DEVICE.type
    torch.testing.assert_close(device.cpu(), cpu, rtol=1e-3, atol=1e-4)


def test_training_starts_like_that_of_the_cpu():
    """The batches, timesteps and, before the noise is drawn on the device, the weights are the same."""
    on_device, on_cpu = Recorder(), Recorder()
    fit(tiny_module(), on_device, limit_train_batches=2)
    fit(tiny_module(), on_cpu, limit_train_batches=2, accelerator="cpu")
    assert on_device.losses == pytest.approx(on_cpu.losses, rel=0.1)  # another noise on a GPU
    assert set(on_device.logged) == set(on_cpu.logged)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.filterwarnings("ignore:.*AMP.*", "ignore:.*16-mixed.*")
def test_each_precision_trains_and_measures(precision, channels_last):
    module = unet_module(optimizer=lambda params: torch.optim.AdamW(params, 1e-3, fused=True))
    before = copy.deepcopy(module)
    callbacks = [EMA(0.9), *([ChannelsLast()] if channels_last else [])]
    run = fit(module, *callbacks, precision=precision, gradient_clip_val=1.0, limit_val_batches=1)
    assert all(weight.is_contiguous() for weight in module.parameters()) != channels_last
    assert not same_weights(before, module)
    assert all(bool(torch.isfinite(weight).all()) for weight in module.parameters())
    run.test(module, FewDigits(batch_size=256), verbose=False)
    total = module.evaluation.last_report.terms["total"].value
    full = trainer(accelerator="cpu")
    full.test(module, FewDigits(batch_size=256), verbose=False)
    assert total == pytest.approx(module.evaluation.last_report.terms["total"].value, rel=0.02)


def test_a_resumed_fit_equals_one_without_interruption(tmp_path):
    whole = tiny_module()
    fit(whole, EMA(0.9), max_epochs=2)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(tiny_module(), EMA(0.9), checkpoint, enable_checkpointing=True)
    resumed = tiny_module()
    run = trainer(accelerator="auto", devices=1, max_epochs=2, callbacks=[EMA(0.9)])
    run.fit(resumed, FewDigits(batch_size=256), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert same_weights(whole, resumed)
    loaded = DDPM.load_from_checkpoint(
        tmp_path / "last.ckpt", map_location="cpu", network=tiny_module().denoiser.network, weights_only=False
    )
    assert next(loaded.parameters()).device.type == "cpu"


@pytest.mark.parametrize("settings", [{}, {"objective": PosteriorKL()}, {"timesteps": AdaptiveTimesteps(num_blocks=4)}])
def test_a_training_step_waits_twice(settings):
    """For the gradient guard, and for the loss on Lightning's progress bar."""

    def waits(num_steps):
        limits = {"limit_train_batches": num_steps, "limit_val_batches": 0}
        module = unet_module(**settings)
        return synchronizations(lambda: fit(module, EMA(0.9), gradient_clip_val=1.0, log_every_n_steps=50, **limits))

    found = waits(4)
    found.subtract(waits(2))
    expected = {"training/optimization.py": 2, "utilities/apply_func.py": 2} if ON_GPU else {}
    assert {place.partition(":")[0]: count for place, count in (+found).items()} == expected


def test_timesteps_follow_the_losses_of_the_device():
    timesteps = AdaptiveTimesteps(num_blocks=4)
    module = unet_module(timesteps=timesteps)
    fit(module)
    assert not timesteps.probabilities().isnan().any()
    assert timesteps.state_dict()["mean_square"].device.type == "cpu"
