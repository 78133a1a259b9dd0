"""Every strategy can be written as plain data under its public path, and built again from it."""

import importlib

import pytest
import torch

import lit_ddpm
from lit_ddpm import (
    X0MSE,
    AncestralSampler,
    BetaSchedule,
    DDIMSampler,
    DiscretizedGaussian,
    DPMSolverSampler,
    GaussianDecoder,
    HybridObjective,
    ImportanceTimesteps,
    KLWeighting,
    LogSNRSchedule,
    MinSNRWeighting,
    PosteriorKL,
    Schedule,
    StratifiedTimesteps,
    UNet,
)
from lit_ddpm._internal.config import Configurable, as_config, public_path, rebuilt

OBJECTS = [
    LogSNRSchedule(num_steps=20, log_snr_start=8.0),
    BetaSchedule([0.1, 0.5, 0.999]),
    X0MSE(),
    X0MSE(MinSNRWeighting(gamma=3.0)),
    PosteriorKL(DiscretizedGaussian(17)),
    HybridObjective(X0MSE(KLWeighting()), weight=0.01, decoder=GaussianDecoder()),
    StratifiedTimesteps(),
    ImportanceTimesteps(history=3),
    AncestralSampler(num_steps=5, chunk_size=8),
    DDIMSampler(eta=0.5),
    DPMSolverSampler(num_steps=7),
    UNet(width=16, multipliers=(1, 2), num_classes=3, fourier_features=[3]),
]


def build(config):
    if not isinstance(config, dict) or "class_path" not in config:
        return config
    module, _, name = config["class_path"].rpartition(".")
    arguments = {key: build(value) for key, value in config["init_args"].items()}
    return getattr(importlib.import_module(module), name)(**arguments)


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_plain_data_builds_the_same_object(value):
    config = as_config(value)
    assert config["class_path"] == f"lit_ddpm.{type(value).__name__}"
    assert as_config(build(config)) == config


def test_every_public_class_has_a_public_path():
    for name in lit_ddpm.__all__:
        value = getattr(lit_ddpm, name)
        if isinstance(value, type):
            assert public_path(value) == f"lit_ddpm.{name}"


class Plain(Schedule):
    """A schedule that is not a dataclass, with a keyword argument for its base class."""

    def __init__(self, top: float, **kwargs):
        self.top = top
        super().__init__(**kwargs)

    def betas(self):
        return torch.linspace(1e-4, self.top, self.num_steps, dtype=torch.float64)


def test_a_class_of_a_user_follows_the_same_convention():
    config = as_config(Plain(0.999, num_steps=30))
    assert config["init_args"] == {"top": 0.999, "num_steps": 30, "zero_terminal_snr": False}


def test_what_has_no_plain_form_is_a_type_error():
    class Local(Configurable):
        pass

    class Forgetful(UNet):
        def __init__(self, secret: int):
            super().__init__(width=8, num_blocks=1, attention_levels=())

    for value in (torch.nn.Linear(1, 1), Local(), Forgetful(3), object()):
        with pytest.raises(TypeError, match=type(value).__name__):
            as_config(value)


def test_an_object_is_rebuilt_with_some_arguments_changed():
    for value in OBJECTS:
        assert as_config(rebuilt(value)) == as_config(value)
    sampler = DDIMSampler(num_steps=5, eta=0.5)
    assert as_config(rebuilt(sampler, chunk_size=8)) == as_config(DDIMSampler(num_steps=5, eta=0.5, chunk_size=8))
    assert sampler.chunk_size == 64
    assert as_config(rebuilt(Plain(0.9, num_steps=30), top=0.5))["init_args"]["num_steps"] == 30
