"""UNet2DModel as a network."""

import sys

import pytest
import torch
import yaml
from diffusers import UNet2DModel
from helpers import error_of
from helpers.pipelines import NETWORK, random_network

from lit_ddpm import (
    DDPM,
    X0MSE,
    CosineSchedule,
    Denoiser,
    DiscretizedGaussian,
    Guidance,
    HybridObjective,
    PosteriorKL,
    PredictionMSE,
    UniformTimesteps,
    VParametrization,
    training_loss,
)
from lit_ddpm.__main__ import main
from lit_ddpm._internal.config import as_config
from lit_ddpm.nn import DiffusersUNet

SMALL_UNET = [
    "--model.network=lit_ddpm.nn.DiffusersUNet",
    "--model.network.options.sample_size=8",
    "--model.network.options.in_channels=1",
    "--model.network.options.block_out_channels=[16, 32]",
    "--model.network.options.down_block_types=[DownBlock2D, AttnDownBlock2D]",
    "--model.network.options.up_block_types=[AttnUpBlock2D, UpBlock2D]",
    "--model.network.options.norm_num_groups=8",
]
FEW = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def test_the_configuration_is_that_of_the_model():
    unet = UNet2DModel(**NETWORK, freq_shift=1, norm_eps=1e-6, num_class_embeds=4, attention_head_dim=None)
    network = DiffusersUNet.from_unet(unet)
    assert all(a is b for a, b in zip(network.network.parameters(), unet.parameters(), strict=True))
    assert network.options == NETWORK | {"freq_shift": 1, "norm_eps": 1e-6}
    assert network.network.config == unet.config
    config = as_config(network)
    again = DiffusersUNet(**config["init_args"])
    again.load_state_dict(network.state_dict())
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor([1, 900]), torch.tensor([0, 3])
    expected = unet.eval()(x, t - 1, class_labels=label).sample
    torch.testing.assert_close(again.eval()(x, t, label=label), expected, rtol=0, atol=0)


def test_labels():
    network = DiffusersUNet(NETWORK, num_classes=3)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 9])
    assert network.network.config.num_class_embeds == 4
    torch.testing.assert_close(network(x, t), network(x, t, label=torch.tensor([3, 3])))
    assert DDPM(network, guidance=Guidance(2.0, 0.1)).denoiser.network_spec.no_label == 3


@pytest.mark.parametrize(
    "objective", [PosteriorKL(DiscretizedGaussian(17)), X0MSE(), PredictionMSE(), HybridObjective()], ids=str
)
def test_it_is_trained_under_every_objective(objective):
    variance = "learned" if isinstance(objective, HybridObjective) else "posterior"
    network = DiffusersUNet({**NETWORK, "out_channels": 2 if variance == "learned" else 1})
    denoiser = Denoiser(network, CosineSchedule(20), VParametrization(), variance)
    x_0 = torch.randint(0, 17, (8, 1, 8, 8)) / 8 - 1
    decoded = objective.with_decoder(DiscretizedGaussian(17))
    training_loss(denoiser, x_0, decoded, UniformTimesteps()).loss.backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in network.parameters() if weight.ndim > 1)


def test_a_fit_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--model.objective=PosteriorKL", "--trainer.callbacks=[]", "--model.schedule.num_steps=20"]
    main(
        [
            "fit",
            "--config",
            "digits",
            "--config",
            "digits_steps",
            *SMALL_UNET,
            *settings,
            "--model.sampler.num_steps=4",
            *FEW,
            *QUIET,
        ]
    )
    saved = yaml.safe_load((tmp_path / "runs/digits_steps/config.yaml").read_text())["model"]["init_args"]["network"]
    assert saved["init_args"]["options"]["block_out_channels"] == [16, 32]
    checkpoint = "runs/digits_steps/checkpoints/last.ckpt"
    module = DDPM.load_from_checkpoint(checkpoint, weights_only=True)
    assert isinstance(module.denoiser.network, DiffusersUNet)
    main(["export", "--ckpt_path", checkpoint, "--output_dir", "out", "--num_samples=0"])


def test_a_fit_in_continuous_time_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--model.network.time=log_snr", "--trainer.callbacks=[]", "--model.sampler.num_steps=4"]
    main(["fit", "--config", "digits", *SMALL_UNET, *settings, *FEW, *QUIET])
    module = DDPM.load_from_checkpoint("runs/digits/checkpoints/last.ckpt", weights_only=True)
    assert isinstance(module.denoiser.network, DiffusersUNet)
    assert module.denoiser.network_spec.time == "log_snr"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--model.network.options={widths: 3}"], "options = {'widths': 3} of DiffusersUNet"),
        (["--model.network.options.norm_num_groups=7"], "num_channels"),
        (
            ["--model.network.options.up_block_types=[UpBlock2D]"],
            "same number of `down_block_types` as `up_block_types`",
        ),
        (["--model.network.options.in_channels=3"], "in_channels = 3 of DiffusersUNet does not fit images"),
        (["--model.network.options.down_block_types=[DownBlock2D, Attention]"], "Attention does not exist"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, message, capsys):
    args = ["fit", "--config", "digits", *SMALL_UNET, *settings, "--trainer.fast_dev_run=true", *QUIET]
    assert message in error_of(capsys, args)


def test_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r'DiffusersUNet needs diffusers: pip install "lit-ddpm\[diffusers\]"'):
        DiffusersUNet()
    args = ["fit", "--config", "digits", *SMALL_UNET, "--trainer.fast_dev_run=true"]
    assert 'pip install "lit-ddpm[diffusers]"' in error_of(capsys, args)


def test_a_kind_of_labels_without_an_equivalent():
    with pytest.raises(ValueError, match="class_embed_type = 'identity' of the UNet2DModel must be None"):
        DiffusersUNet.from_unet(random_network(class_embed_type="identity"))
