"""The hyperparameters of a checkpoint: plain data, public class paths, and the arguments of the subclass."""

import importlib
import inspect
import re

import torch
from helpers import FewDigits, Recorder, digits, trainer

import lit_ddpm
from lit_ddpm import (
    DDPM,
    X0MSE,
    DDIMSampler,
    DiscretizedGaussian,
    Evaluation,
    Guidance,
    HybridObjective,
    ImportanceTimesteps,
    LogSNRSchedule,
    MinSNRWeighting,
    UNet,
    VParametrization,
)
from lit_ddpm.callbacks import EMA, SampleGrid

PUBLIC = ("lit_ddpm", "lit_ddpm.callbacks", "lit_ddpm.data", "lit_ddpm.metrics")


class Narrow(DDPM):
    """A subclass that passes a network itself and other arguments on."""

    def __init__(self, width: int, **kwargs):
        super().__init__(network=UNet(width=width, num_blocks=1, attention_levels=()), **kwargs)


def save(module, path):
    run = trainer(max_steps=1, max_epochs=-1, callbacks=[EMA(0.9), SampleGrid(num_images=2), Recorder()])
    run.fit(module, digits())
    run.save_checkpoint(path)
    return torch.load(path, weights_only=True)


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def test_a_checkpoint_with_every_slot_has_only_public_paths(tmp_path):
    module = DDPM(
        UNet(out_channels=2, width=16, num_blocks=1, attention_levels=(), num_classes=10),
        LogSNRSchedule(num_steps=20),
        VParametrization(),
        HybridObjective(X0MSE(MinSNRWeighting()), decoder=DiscretizedGaussian(17)),
        ImportanceTimesteps(),
        DiscretizedGaussian(17),
        DDIMSampler(num_steps=5, chunk_size=4),
        variance="learned",
        guidance=Guidance(2.0, 0.1),
        evaluation=Evaluation(4),
    )
    checkpoint = save(module, tmp_path / "full.ckpt")
    paths = [text for text in strings(checkpoint) if re.fullmatch(r"lit_ddpm(\.\w+)+", text)]
    assert len(paths) >= 9  # one for each slot, and the parts of the objective
    for path in paths:
        package, _, name = path.rpartition(".")
        assert package in PUBLIC, path
        assert name in importlib.import_module(package).__all__
    loaded = DDPM.load_from_checkpoint(tmp_path / "full.ckpt", weights_only=True)
    assert loaded.hparams == module.hparams
    parameters = list(inspect.signature(DDPM).parameters)
    assert [name for name in parameters if name in module.hparams] == list(module.hparams)[1:]  # after _instantiator


def test_a_subclass_saves_the_arguments_that_it_accepts(tmp_path):
    module = Narrow(16, schedule=LogSNRSchedule(num_steps=20), evaluation=Evaluation(4))
    save(module, tmp_path / "narrow.ckpt")
    assert module.hparams["width"] == 16
    assert "network" not in module.hparams
    loaded = Narrow.load_from_checkpoint(tmp_path / "narrow.ckpt", weights_only=True)
    assert loaded.denoiser.network.width == 16
    assert loaded.denoiser.schedule.num_steps == 20


def test_a_data_module_and_a_callback_have_public_paths():
    from lit_ddpm._internal.config import public_path

    assert public_path(EMA) == "lit_ddpm.callbacks.EMA"
    assert public_path(FewDigits.__mro__[1]) == "lit_ddpm.data.DigitsDataModule"
    assert lit_ddpm.metrics.__name__ == "lit_ddpm.metrics"
