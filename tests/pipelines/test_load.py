"""Pipelines of diffusers as DDPM."""

import json
import shutil
import sys

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from diffusers.training_utils import EMAModel
from helpers.pipelines import random_network, random_pipeline

from benchmarks.common.pipelines import pipeline_samples
from lit_ddpm import AncestralSampler, Guidance, HybridObjective, PredictionMSE
from lit_ddpm.pipelines import load_pipeline

SETTINGS = [
    {"prediction_type": prediction, "variance_type": variance, "clip_sample": variance != "fixed_large"}
    for prediction in ("epsilon", "sample", "v_prediction")
    for variance in ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")
]


def same_weights(model, unet):
    ours = model.denoiser.network.network.state_dict()
    return all(torch.equal(ours[name], weight) for name, weight in unet.state_dict().items())


@pytest.mark.parametrize("settings", SETTINGS)
def test_samples_are_those_of_diffusers(settings, tmp_path):
    pipeline = random_pipeline(**settings)
    pipeline.save_pretrained(tmp_path)
    model = load_pipeline(tmp_path)
    images = model.sample(4, sampler=AncestralSampler(chunk_size=4))
    drawn = pipeline_samples(pipeline, 4)
    assert float(drawn.std()) > 0.1
    assert float((images.clamp(-1, 1) - drawn).abs().max()) < 1e-4
    learned = settings["variance_type"] == "learned_range"
    assert isinstance(model.objective, HybridObjective if learned else PredictionMSE)


def test_a_class_conditional_network(tmp_path):
    network = random_network(num_class_embeds=10)
    DDPMPipeline(network, DDPMScheduler(20)).save_pretrained(tmp_path)
    model = load_pipeline(tmp_path)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 20])
    output = model.denoiser.network(x, t, label=torch.tensor([3, 9]))
    torch.testing.assert_close(output, network(x, t - 1, class_labels=torch.tensor([3, 9])).sample)
    assert (model.denoiser.network_spec.num_classes, model.denoiser.network_spec.no_label) == (10, None)
    with pytest.raises(ValueError, match='no embedding for "no label"'):
        model.denoiser.network(x, t)
    with pytest.raises(ValueError, match=r'scale = 2 of Guidance .* "no label": no_label of DiffusersUNet'):
        type(model)(model.denoiser.network, guidance=Guidance(2))
    with pytest.raises(ValueError, match=r'dropout = 0.1 of Guidance needs a network with "no label"'):
        type(model)(model.denoiser.network, guidance=Guidance(dropout=0.1))
    assert load_pipeline(tmp_path, no_label=True).denoiser.network_spec.no_label == 9


def test_a_rectangular_image(tmp_path):
    random_pipeline(network={"sample_size": (8, 16)}).save_pretrained(tmp_path)
    assert load_pipeline(tmp_path).sample(1).shape == (1, 1, 8, 16)


def test_averaged_weights_are_preferred(tmp_path):
    """The checkpoints of diffusers' training script have both networks, and the scheduler is one folder up."""
    pipeline = random_pipeline(prediction_type="v_prediction")
    pipeline.save_pretrained(tmp_path)
    checkpoint = tmp_path / "checkpoint-500"
    shutil.copytree(tmp_path / "unet", checkpoint / "unet")
    average = random_network()
    average.conv_in.weight.data.mul_(0.5)
    EMAModel(average.parameters(), model_cls=type(average), model_config=average.config).save_pretrained(
        checkpoint / "unet_ema"
    )
    model = load_pipeline(checkpoint)
    assert same_weights(model, average)
    assert model.denoiser.parametrization.__class__.__name__ == "VParametrization"
    assert same_weights(load_pipeline(checkpoint / "unet"), pipeline.unet)


def test_files_in_one_folder_and_old_weights(tmp_path):
    """The oldest models have no folders, and pickled weights."""
    pipeline = random_pipeline()
    pipeline.unet.save_pretrained(tmp_path, safe_serialization=False)
    pipeline.scheduler.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.bin").is_file()
    model = load_pipeline(tmp_path)
    assert same_weights(model, pipeline.unet)
    assert model.denoiser.schedule.num_steps == 30


def test_a_network_without_a_scheduler_gets_that_of_ho_et_al(tmp_path):
    place = tmp_path / "a" / "b" / "network"
    random_network().save_pretrained(place)
    with pytest.warns(UserWarning, match=r"network has no scheduler: that of Ho et al\. 2020 is assumed"):
        assert load_pipeline(place).denoiser.schedule.num_steps == 1000


def test_a_model_on_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    """Without a network, the Hub's library reads what it has downloaded before."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"someone/digits is neither a directory nor a model on the Hub \("):
        load_pipeline("someone/digits")
    repository = tmp_path / "models--someone--digits"
    pipeline = random_pipeline()
    pipeline.save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert same_weights(load_pipeline("someone/digits"), pipeline.unet)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_one_weight(directory):
    from safetensors.torch import load_file, save_file

    path = directory / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path, metadata={"format": "pt"})


def truncated(directory):
    path = directory / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


UNET = "unet/config.json"
DAMAGES = {
    "no network": (lambda d: shutil.rmtree(d / "unet"), r"has no config.json of a UNet2DModel"),
    "no weights": (lambda d: next(d.glob("unet/*.safetensors")).unlink(), r"the weights .* are missing in .*unet"),
    "one weight missing": (without_one_weight, r"1 weights are missing in .*unet, the first is conv_in.bias"),
    "truncated": (truncated, r"the weights of .*unet do not load \(\w+: "),
    "other shapes": (lambda d: edit(d / UNET, block_out_channels=[8, 16]), r"the weights of .*unet do not load"),
    "not JSON": (lambda d: (d / UNET).write_text("{"), r"config.json is not a JSON file"),
    "not an object": (lambda d: (d / UNET).write_text("[]"), r"config.json must contain an object"),
    "latent": (
        lambda d: edit(d / "model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"]),
        r"is a LDMPipeline with vqvae: only pipelines of a unet and a scheduler",
    ),
    "transformer": (
        lambda d: (edit(d / "model_index.json", transformer=["diffusers", "DiT"]), shutil.rmtree(d / "unet")),
        r"is a DDPMPipeline with transformer: only pipelines of a unet",
    ),
    "other network": (lambda d: edit(d / UNET, _class_name="DiTTransformer2DModel"), r"is a DiTTransformer2DModel"),
    "other scheduler": (
        lambda d: edit(d / "scheduler/scheduler_config.json", _class_name="PNDMScheduler"),
        r"the scheduler PNDMScheduler must be a DDPMScheduler or a DDIMScheduler",
    ),
    "labels of another kind": (lambda d: edit(d / UNET, class_embed_type="identity"), r"class_embed_type = 'identity'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_loaded_is_one_sentence(name, tmp_path):
    damage, message = DAMAGES[name]
    random_pipeline().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        load_pipeline(tmp_path)
    assert "\n" not in str(refused.value)


def test_names_that_cannot_be_on_the_hub():
    with pytest.raises(ValueError, match=r"runs/no/such/model is neither a directory nor a model on the Hub"):
        load_pipeline("runs/no/such/model")


def test_the_extra_is_named(tmp_path, monkeypatch):
    random_pipeline().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r'needs diffusers: pip install "lit-ddpm\[diffusers\]"'):
        load_pipeline(tmp_path)


def test_a_ddim_pipeline(tmp_path):
    pipeline = random_pipeline()
    pipeline.save_pretrained(tmp_path)
    DDIMScheduler.from_config(pipeline.scheduler.config).save_pretrained(tmp_path / "scheduler")
    edit(tmp_path / "model_index.json", _class_name="DDIMPipeline", scheduler=["diffusers", "DDIMScheduler"])
    model = load_pipeline(tmp_path)
    assert (type(model.sampler).__name__, model.sampler.num_steps) == ("DDIMSampler", 30)
