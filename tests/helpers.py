"""A module and a Trainer that fit in a second."""

import logging
import warnings

import lightning
import torch
from conftest import TinyNetwork

from lit_ddpm import DDPM, AncestralSampler, LogSNRSchedule, VParametrization
from lit_ddpm.data import DigitsDataModule, ImageTensors

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*(does not have many workers|lower than or equal to|log_every_n_steps|LeafSpec).*")


def tiny_module(kind=DDPM, **kwargs) -> DDPM:
    lightning.seed_everything(0, verbose=False)
    defaults = {
        "network": TinyNetwork(num_steps=20),
        "schedule": LogSNRSchedule(min=-6, max=6, num_steps=20),
        "parametrization": VParametrization(),
        "sampler": AncestralSampler(chunk_size=8),
        "num_val_timesteps": 4,
    }
    return kind(**{**defaults, **kwargs})


def digits(**kwargs) -> DigitsDataModule:
    return DigitsDataModule(**{"batch_size": 256, **kwargs})


class Few(DigitsDataModule):
    """The digits with 50 images to validate and 50 to test."""

    def splits(self) -> dict[str, ImageTensors]:
        splits = super().splits()
        few = {name: ImageTensors(splits[name].images[:50], splits[name].labels[:50]) for name in ("val", "test")}
        return splits | few


def trainer(**kwargs) -> lightning.Trainer:
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": ".",
    }
    return lightning.Trainer(**{**defaults, **kwargs})


def compile_without_code(module: torch.nn.Module) -> None:
    """Compiles a module but for the machine code, which takes a minute."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")
