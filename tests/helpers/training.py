"""A module, a data module and a Trainer that fit in a second."""

import logging
import os
import signal
import sys
import warnings
from pathlib import Path

import lightning
import torch
from torch.distributed.fsdp import FSDPModule

from helpers.models import TinyNetwork
from lit_ddpm import DDPM, AncestralSampler, Evaluation, LogSNRSchedule, UNet, VParametrization
from lit_ddpm.data import DigitsDataModule, ImageTensors

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*(does not have many workers|lower than or equal to|log_every_n_steps|LeafSpec).*")


def tiny_module(kind=DDPM, **kwargs) -> DDPM:
    lightning.seed_everything(0, verbose=False)
    defaults = {
        "network": TinyNetwork(num_steps=20),
        "schedule": LogSNRSchedule(num_steps=20, log_snr_start=6, log_snr_end=-6),
        "parametrization": VParametrization(),
        "sampler": AncestralSampler(chunk_size=8),
        "evaluation": Evaluation(4),
    }
    return kind(**{**defaults, **kwargs})


def digits(**kwargs) -> DigitsDataModule:
    return DigitsDataModule(**{"batch_size": 256, **kwargs})


class FewDigits(DigitsDataModule):
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


def fit(*callbacks, module=None, data=None, **kwargs) -> lightning.Trainer:
    run = trainer(**{"callbacks": list(callbacks), "limit_val_batches": 1, "max_epochs": 2, **kwargs})
    run.fit(module or tiny_module(), data or digits())
    return run


def same_weights(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def compile_without_code(module: torch.nn.Module) -> None:
    """Compiles a module without generating machine code, which takes a minute."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")


SHARDS = hasattr(FSDPModule, "set_reshard_after_forward")  # from torch 2.8 on


def forget_processes() -> None:
    """Removes the process group and the environment of a strategy, and the run and the environment of W&B.

    A LOCAL_RANK promises processes nobody starts, and a WANDB_SERVICE another working directory; a logger would add to
    a run that is not finished.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED", "WANDB_SERVICE")
    for name in [n for n in os.environ if n in names or "MASTER_" in n]:
        del os.environ[name]


class Recorder(lightning.Callback):
    """Records the losses of training, its logged metrics and the input of every call of the network."""

    def __init__(self):
        self.losses, self.inputs, self.logged = [], [], {}

    def on_fit_start(self, trainer, module):
        def keep(network, args):
            if module.training:
                self.inputs.append(args[0].detach().clone())

        module.denoiser.network.register_forward_pre_hook(keep)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}


class FailingCallback(lightning.Callback):
    """Raises an error that is not about the input; named by its import path on the command line."""

    def on_train_start(self, trainer, pl_module):
        raise RuntimeError("mine")


class Terminate(lightning.Callback):
    """Sends the process SIGTERM, as SLURM does; named by its import path on the command line."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


class Brightness(torch.nn.Module):
    """An extractor of quantiles of the pixels; named by its import path in YAML."""

    name = "brightness"

    def __init__(self, bins: int = 2):
        super().__init__()
        self.bins = bins

    def forward(self, images):
        return images.flatten(1).float().quantile(torch.linspace(0, 1, self.bins), dim=1).T


class FailingNetwork(TinyNetwork):
    """A user's network with a fault that shows inside torch, as a TypeError or a ValueError."""

    def __init__(self, kind: str = "type") -> None:
        super().__init__(num_steps=256)
        self.kind = kind

    def forward(self, x_t, t):
        return torch.cat(3) if self.kind == "type" else torch.nn.init.calculate_gain("none")


class FailingData(DigitsDataModule):
    """A user's data module that does not find its file."""

    def splits(self):
        return super().splits() if Path("mine.npz").read_bytes() else {}


class FailingSettings(torch.nn.Module):
    """A user's network that passes a bad setting on to the package."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(dropout=2.0)
