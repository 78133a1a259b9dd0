"""The files of a pipeline or U-Net of diffusers, in a directory or on the Hugging Face Hub."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.extras import import_extra

WEIGHTS = "diffusion_pytorch_model"
SUFFIXES = (".safetensors", ".bin")  # the second are pickled tensors of old models, which diffusers loads safely
NOTES = "lit_ddpm.json"
"""What a pipeline of `save_pipeline` has beyond one of diffusers."""

NETWORK_FOLDERS = ("unet_ema", "unet", ".")
"""Where the network is, the averaged one first; the oldest pipelines have all files in one folder."""


@dataclass(frozen=True)
class PipelineFiles:
    """The files of a model, not yet loaded."""

    name: str  # the path or the name on the Hub
    is_remote: bool
    folder: Path  # for a model on the Hub that of the cache
    network: str  # the folder of the U-Net in it
    scheduler: dict[str, Any]  # its configuration
    notes: dict[str, Any]

    @classmethod
    def find(cls, name: str) -> "PipelineFiles":
        """Finds the files of a directory, or downloads the configurations of a model on the Hub.

        Raises:
            ValueError: If there are none, or the model is not a U-Net for images with a scheduler.
        """
        folder = Path(name).expanduser()
        is_remote = not folder.is_dir()
        if is_remote:
            folder = _download(name, "*.json")
        around = (folder, *folder.resolve().parents[:2])  # a network alone may be part of a pipeline
        for directory in around:
            _check_components(name, _read(directory / "model_index.json"))
        configs = {place: _read(folder / place / "config.json") for place in NETWORK_FOLDERS}
        place = next((place for place, config in configs.items() if config), None)
        if place is None:
            raise InputError(f"{name} has no config.json of a UNet2DModel, neither in unet/ nor next to its weights.")
        kind = configs[place].get("_class_name", "UNet2DModel")
        if kind != "UNet2DModel":
            raise InputError(f"the network of {name} is a {kind}: it must be a UNet2DModel.")
        return cls(name, is_remote, folder, place, _scheduler(name, around), _read(folder / NOTES))

    def load_network(self) -> nn.Module:
        """Returns the ``UNet2DModel``.

        Raises:
            ValueError: If its weights are missing, incomplete or damaged.
        """
        diffusers = import_extra("diffusers", needed_by=self.name)
        folder = self.folder / self.network
        if self.is_remote:
            for suffix in SUFFIXES:
                if not _has_weights(folder):
                    pattern = f"{WEIGHTS}*{suffix}"
                    _download(self.name, pattern if self.network == "." else f"{self.network}/{pattern}")
        if not _has_weights(folder):
            raise InputError(f"the weights {WEIGHTS}.safetensors are missing in {folder}.")
        verbosity = diffusers.logging.get_verbosity()
        diffusers.logging.set_verbosity_error()  # it warns of what is refused here
        try:
            network, loaded = diffusers.UNet2DModel.from_pretrained(
                folder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=True
            )
        except Exception as error:  # of many kinds, by the damage
            reason = " ".join(str(error).split())
            raise InputError(f"the weights of {folder} do not load ({type(error).__name__}: {reason}).") from None
        finally:
            diffusers.logging.set_verbosity(verbosity)
        if missing := loaded["missing_keys"]:
            raise InputError(f"{len(missing)} weights are missing in {folder}, the first is {sorted(missing)[0]}.")
        rank_zero_info(f"The network is the UNet2DModel of {folder}.")
        model: nn.Module = network
        return model


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in SUFFIXES for path in folder.glob(f"{WEIGHTS}*"))


def _check_components(name: str, index: dict[str, Any]) -> None:
    """Raises a ValueError for a pipeline with other components than a network and a scheduler."""
    parts = {part for part, value in index.items() if isinstance(value, list) and value[0] is not None}
    if others := sorted(parts - {"unet", "scheduler"}):
        kind = index.get("_class_name")
        raise InputError(
            f"{name} is a {kind} with {', '.join(others)}: only pipelines of a unet and a scheduler have a bound."
        )


def _scheduler(name: str, directories: Sequence[Path]) -> dict[str, Any]:
    """Returns the configuration of the first scheduler in some directories; empty, the defaults, if there is none."""
    for directory in directories:
        for place in ("scheduler", "."):
            if config := _read(directory / place / "scheduler_config.json"):
                return config
    rank_zero_warn(
        f"{name} has no scheduler: that of Ho et al. 2020 is assumed, the default of DDPMScheduler. Set others with "
        "--model.schedule, --model.parametrization, --model.variance and --model.clip."
    )
    return {}


def _read(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file, empty if it does not exist."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a JSON file ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must contain an object.")
    return content


def _download(name: str, pattern: str) -> Path:
    """Returns the folder in the cache of the Hub with the files of a repository that match a pattern."""
    import_extra("diffusers", needed_by=name)  # the Hub's package is one of its dependencies
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=pattern))
    except Exception as error:  # of many kinds, from names and from the network
        reason = " ".join(str(error).split())
        raise InputError(f"{name} is neither a directory nor a model on the Hub ({reason})") from None
