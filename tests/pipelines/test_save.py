"""DDPM as pipelines of diffusers, and back."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from helpers.pipelines import NETWORK
from PIL import Image
from torch import nn

from benchmarks.common.pipelines import pipeline_samples
from lit_ddpm import (
    DDPM,
    AncestralSampler,
    BetaSchedule,
    CosineSchedule,
    DiscretizedGaussian,
    GaussianDecoder,
    HybridObjective,
    LogSNRSchedule,
    MeanParametrization,
    UNet,
    VParametrization,
    X0Parametrization,
    bits_per_dim,
    variational_bound,
)
from lit_ddpm.data import to_float
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.nn import DiffusersUNet
from lit_ddpm.pipelines import load_pipeline, save_pipeline


def unet(**settings):
    torch.manual_seed(0)
    network = UNet(width=128, multipliers=(1,), num_blocks=1, attention_levels=(0,), **settings)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.03 if parameter.ndim > 1 else 0.1)
    return network


def diffusers_unet():
    torch.manual_seed(0)
    return DiffusersUNet(NETWORK)


def model_of(network, schedule, *args, **kwargs):
    model = DDPM(network, schedule, *args, **kwargs).eval()
    model.observe(DataSpec(image_shape=(1, 8, 8), levels=17))
    return model


CASES = {
    "eps, posterior": lambda: model_of(unet(), CosineSchedule(30), clip=True),
    "v, beta": lambda: model_of(
        unet(), LogSNRSchedule(30, log_snr_start=8.0), VParametrization(), variance="beta", clip=False
    ),
    "x0, fixed_large": lambda: model_of(
        diffusers_unet(), CosineSchedule(30, zero_terminal_snr=True), X0Parametrization(), variance="fixed_large"
    ),
    "eps, fixed_small": lambda: model_of(diffusers_unet(), CosineSchedule(30), variance="fixed_small", clip=True),
    "v, learned": lambda: model_of(
        unet(out_channels=2),
        BetaSchedule(torch.linspace(0.05, 0.6, 20)),
        VParametrization(),
        HybridObjective(),
        variance="learned",
        clip=True,
    ),
}


def bits_of_terms(model):
    pixels = torch.randint(0, 17, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bound = variational_bound(model.denoiser, to_float(pixels, 17), DiscretizedGaussian(17))
    return torch.stack([bits_per_dim(t, 64) for t in (bound.prior, bound.diffusion, bound.reconstruction)])


@pytest.mark.parametrize("name", CASES)
def test_images_and_bound_survive(name, tmp_path):
    model = CASES[name]()
    save_pipeline(model, tmp_path / "out", num_samples=4)
    again = load_pipeline(tmp_path / "out")
    ours = model.sample(4, sampler=AncestralSampler(chunk_size=4))
    torch.testing.assert_close(again.sample(4, sampler=AncestralSampler(chunk_size=4)), ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(bits_of_terms(again), bits_of_terms(model), rtol=1e-5, atol=1e-5)
    assert again.denoiser.variance == model.denoiser.variance
    drawn = pipeline_samples(DDPMPipeline.from_pretrained(tmp_path / "out"), 4)
    assert float(drawn.std()) > 0.05
    torch.testing.assert_close(drawn, ours.clamp(-1, 1), rtol=0, atol=1e-4)


def test_a_class_conditional_model_keeps_no_label(tmp_path):
    model = model_of(unet(num_classes=10), CosineSchedule(20))
    save_pipeline(model, tmp_path / "out", num_samples=0)
    again = load_pipeline(tmp_path / "out")
    assert (again.denoiser.network_spec.num_classes, again.denoiser.network_spec.no_label) == (10, 10)
    torch.testing.assert_close(again.sample(2, label=3), model.sample(2, label=3), rtol=0, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert '0 to 9; 10 means "no label"' in card
    assert "samples.png" not in card


def test_the_files_of_a_pipeline(tmp_path):
    save_pipeline(CASES["eps, posterior"](), tmp_path / "out", num_samples=6)
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "lit_ddpm.json",
        "model_index.json",
        "samples.png",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert str(tmp_path) not in (tmp_path / "out" / "unet" / "config.json").read_text()
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    betas = CosineSchedule(30).beta(torch.arange(1, 31))
    np.testing.assert_allclose(scheduler["trained_betas"], betas, rtol=1e-12)
    assert np.asarray(Image.open(tmp_path / "out" / "samples.png")).std() > 10
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert 'from_pretrained("out")\nimages = pipeline(batch_size=4, num_inference_steps=30)' in card
    assert "Variational bound" not in card  # nothing was measured


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: model_of(nn.Identity(), CosineSchedule(20)), "network = Identity has no UNet2DModel"),
        (lambda: model_of(unet(), CosineSchedule(20), MeanParametrization()), "MeanParametrization has no DDPMSched"),
        (lambda: DDPM(unet(), CosineSchedule(20)), "image_shape is unknown until the module has seen data"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pipeline(model(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_error_while_drawing_leaves_nothing(tmp_path, monkeypatch):
    model = CASES["eps, posterior"]()
    monkeypatch.setattr(model, "sample", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_pipeline(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_real_values_and_files_in_the_way(tmp_path):
    model = model_of(unet(), CosineSchedule(20), decoder=GaussianDecoder())
    with pytest.raises(ValueError, match="real-valued data has no DDPMPipeline"):
        save_pipeline(model, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ValueError, match="out is not empty"):
        save_pipeline(CASES["eps, posterior"](), tmp_path / "out")
    with pytest.raises(ValueError, match="num_samples = -1 must be at least 0"):
        save_pipeline(CASES["eps, posterior"](), tmp_path / "new", num_samples=-1)
