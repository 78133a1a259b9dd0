import lightning
import pytest
import torch
from helpers import (
    FewDigits,
    LabelledNetwork,
    TinyNetwork,
    compile_without_code,
    digits,
    same_weights,
    tiny_module,
    trainer,
)
from torch import nn

from lit_ddpm import (
    DDPM,
    X0MSE,
    AdaptiveTimesteps,
    DiscretizedGaussian,
    Evaluation,
    Guidance,
    ImportanceTimesteps,
    KLWeighting,
    LogSNRSchedule,
    UNet,
    VParametrization,
)
from lit_ddpm.callbacks import EMA, ChannelsLast, Compile, Performance


def saved(module, path="module.ckpt", data=None):
    run = trainer(max_steps=1, max_epochs=-1)
    run.fit(module, data or digits())
    run.save_checkpoint(path)
    return path


class Mine(DDPM):
    """A subclass with its own settings."""

    def __init__(self, channels: int = 1, **kwargs):
        super().__init__(network=TinyNetwork(channels, num_steps=20), **kwargs)


def test_a_module_built_in_python_loads_weights_only():
    network = UNet(width=16, num_blocks=1, attention_levels=[], multipliers=(1, 2))
    module = tiny_module(
        network=network, objective=X0MSE(KLWeighting()), variance="beta", decoder=DiscretizedGaussian(17)
    )
    path = saved(module)
    torch.load(path, weights_only=True)
    loaded = DDPM.load_from_checkpoint(path, weights_only=True)
    assert same_weights(loaded, module)
    assert loaded.denoiser.variance == "beta"
    assert loaded.denoiser.schedule.num_steps == 20
    assert isinstance(loaded.objective.weighting, KLWeighting)
    assert loaded.sampler.chunk_size == 8
    torch.testing.assert_close(loaded.sample(3, seed=1), module.sample(3, seed=1))


def test_a_foreign_network_is_passed_when_loading():
    module = tiny_module()
    path = saved(module)
    with pytest.raises(ValueError, match=r"does not fit the network \(saved without its network: pass them"):
        DDPM.load_from_checkpoint(path, weights_only=True)
    loaded = DDPM.load_from_checkpoint(path, weights_only=True, network=TinyNetwork(num_steps=20))
    assert same_weights(loaded, module)
    assert loaded.denoiser.schedule.num_steps == 20


def test_settings_are_given_as_objects_when_loading():
    path = saved(Mine(evaluation=Evaluation(num_val_timesteps=4), schedule=LogSNRSchedule(num_steps=20)))
    assert Mine.load_from_checkpoint(path).evaluation.num_val_timesteps == 4
    loaded = Mine.load_from_checkpoint(path, evaluation=Evaluation(target_se=0.5))
    assert (loaded.evaluation.num_val_timesteps, loaded.evaluation.target_se) == (32, 0.5)
    with pytest.raises(ValueError, match=r"scale = 2\.0 of Guidance needs a class-conditional network"):
        Mine.load_from_checkpoint(path, guidance=Guidance(scale=2.0))
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        loaded.load_from_checkpoint(path)  # it would leave the module as it is


def test_a_loaded_module_knows_image_shape_and_levels():
    loaded = DDPM.load_from_checkpoint(saved(tiny_module()), weights_only=True, network=TinyNetwork(num_steps=20))
    assert loaded.data.image_shape == (1, 8, 8)
    assert loaded.levels == 17
    assert DDPM().levels == 256


def test_a_subclass_loads_with_its_own_settings():
    lightning.seed_everything(0, verbose=False)
    module = Mine(channels=1, schedule=LogSNRSchedule(num_steps=20), parametrization=VParametrization())
    loaded = Mine.load_from_checkpoint(saved(module), weights_only=True)
    assert same_weights(loaded, module)
    assert loaded.denoiser.schedule.num_steps == 20


def test_weights_that_do_not_fit_are_named():
    path = saved(tiny_module(network=UNet(width=16, num_blocks=1)))
    with pytest.raises(
        ValueError, match=r"weights differ, the first is denoiser\.network\S+, \[64, 16\] in .* and \[128, 32\]"
    ):
        trainer().test(tiny_module(network=UNet(width=32, num_blocks=1)), digits(), ckpt_path=path, weights_only=True)


class Poison(lightning.Callback):
    """Sets the weights to NaN after a step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            with torch.no_grad():
                module.denoiser.network.conv.weight.fill_(float("nan"))


def test_nonfinite_weights_are_not_saved(tmp_path):
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1)
    run = trainer(callbacks=[Poison(), checkpoints], limit_val_batches=0, enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match=r"1 weights are not finite after step 4, .*conv\.weight.*kept"):
        run.fit(tiny_module(), digits())
    (path,) = tmp_path.glob("*.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 4


def test_compiled_and_plain_modules_share_checkpoints(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: (compiled.append(self), compile_without_code(self)))

    def make(**kwargs):
        torch.manual_seed(0)
        return tiny_module(network=UNet(width=16, num_blocks=1, attention_levels=[]), **kwargs)

    fast = [Compile(), ChannelsLast()]
    bounds = {}
    for name, settings, others in (("plain", [], fast), ("fast", fast, [])):
        path = tmp_path / f"{name}.ckpt"
        run = trainer(max_steps=2, max_epochs=-1, callbacks=[EMA(0.9), Performance(), *settings])
        run.fit(make(), digits())
        run.save_checkpoint(path)
        checkpoint = torch.load(path, weights_only=True)
        assert "_orig_mod" not in " ".join(checkpoint["state_dict"])
        for again in (settings, others):
            module = DDPM.load_from_checkpoint(path)
            assert all(torch.equal(v, checkpoint["state_dict"][k]) for k, v in module.state_dict().items())
            (found,) = trainer(callbacks=again).test(module, FewDigits(), verbose=False)
            bounds[name, again is settings] = found["test/bpd"]
            weight = module.denoiser.network.conv_out.weight
            assert weight.is_contiguous(memory_format=torch.channels_last) == bool(again)
    assert len(compiled) == 3
    for name in ("plain", "fast"):
        assert bounds[name, True] == pytest.approx(bounds[name, False], abs=1e-5)
    assert bounds["plain", True] == pytest.approx(bounds["fast", True], abs=1e-3)


def test_the_data_of_the_data_module_count_with_a_checkpoint(tmp_path):
    """A module trained on 256 levels is measured on 17 with their decoder, and a warning names the difference."""

    class Pixels(FewDigits):
        levels = 256

    run = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(tiny_module(), Pixels(batch_size=64))
    run.save_checkpoint(tmp_path / "pixels.ckpt")
    module = tiny_module()
    with pytest.warns(UserWarning, match="differ from those of the checkpoint in levels = 17, not 256"):
        trainer().test(module, FewDigits(), ckpt_path=tmp_path / "pixels.ckpt", weights_only=True, verbose=False)
    assert module.decoder.levels == 17


def test_a_checkpoint_of_an_earlier_version_is_one_sentence():
    module = tiny_module()
    with pytest.raises(ValueError, match="of an earlier version of lit_ddpm, which this one does not load"):
        module.on_load_checkpoint({"lit_ddpm": {"image_shape": [1, 8, 8], "data_levels": 17}})


def test_the_state_of_another_timestep_sampler_is_not_loaded(tmp_path):
    run = trainer(max_epochs=1, limit_val_batches=0)
    run.fit(tiny_module(timesteps=ImportanceTimesteps(history=1)), digits())
    run.save_checkpoint(tmp_path / "a.ckpt")
    network = TinyNetwork(num_steps=20)
    loaded = DDPM.load_from_checkpoint(tmp_path / "a.ckpt", network=network, timesteps=AdaptiveTimesteps(8))
    trainer(max_epochs=1, limit_val_batches=0).fit(loaded, digits())
    other = AdaptiveTimesteps(8)
    other.load_state_dict(AdaptiveTimesteps(4).state_dict())
    assert len(other.probabilities()) == 8


def test_a_subclass_of_settings_is_passed_again(tmp_path):
    class Half(Guidance):
        """Guidance of a class that a checkpoint cannot name."""

    module = tiny_module(network=LabelledNetwork(10), guidance=Half(2.0))
    assert "guidance" in module.unsaved_arguments
    assert "guidance" not in tiny_module(guidance=Guidance()).unsaved_arguments
