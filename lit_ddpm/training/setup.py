"""Checks before training: whether model and data fit, and which settings would be faster on this machine."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from typing_extensions import override

from lit_ddpm.data.spec import DataSpec
from lit_ddpm.training.cost import CostReport
from lit_ddpm.training.distributed import GatherFullWeights
from lit_ddpm.training.feedback import ImportanceFeedback
from lit_ddpm.training.log_bound import LogBound
from lit_ddpm.training.optimization import SkipNonFinite

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

MIN_PIXELS = 28 * 28
"""Images with fewer pixels gain nothing on a CPU: on the 8x8 digits the conversion costs what it saves."""


def internal_callbacks(attached: Sequence[Callback]) -> list[Callback]:
    """Returns the callbacks that a `DDPM` adds to a Trainer: one of each class that none of the `attached` is of."""
    kinds = GatherFullWeights, LogBound, SkipNonFinite, ImportanceFeedback, SpeedHint, CostReport
    return [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in attached)]


def check_data(data: DataSpec, module: "DDPM") -> None:
    """Raises a ValueError if the levels, shape, classes or conditions of a data module do not fit the model."""
    denoiser, decoder, network = module.denoiser, module.decoder, module.denoiser.network_spec
    if data.levels and decoder.levels not in (None, data.levels):
        raise ValueError(
            f"the decoder has levels = {decoder.levels} but the images of {data.name} have levels = {data.levels}; set "
            f"the decoder's levels to {data.levels}."
        )
    parametrization = denoiser.parametrization
    if parametrization.levels is not None and parametrization.levels != decoder.levels:
        found = "real values" if decoder.levels is None else f"levels = {decoder.levels}"
        raise ValueError(
            f"levels = {parametrization.levels} of {type(parametrization).__name__} does not fit {data.name}, which "
            f"has {found}."
        )
    if data.real_valued and denoiser.clip:
        raise ValueError(f"clip = True limits x_0 to [-1, 1], which the real values of {data.name} exceed: remove it.")
    if data.image_shape is not None and network.dims is not None:
        dims = len(data.image_shape) - 1
        if network.dims != dims:
            raise ValueError(
                f"dims = {network.dims} of {network.name} does not fit image_shape = {list(data.image_shape)} from "
                f"{data.name}, which has channels and {dims} dimensions: set dims to {dims}."
            )
    if data.image_shape is not None:
        channels = data.image_shape[0]
        needed = {"in_channels": channels, "out_channels": channels * denoiser.outputs}
        for name, actual in (("in_channels", network.in_channels), ("out_channels", network.out_channels)):
            if actual not in (None, needed[name]):
                raise ValueError(
                    f"{name} = {actual} of {network.name} does not fit images of image_shape = "
                    f"{list(data.image_shape)} from {data.name}: {type(parametrization).__name__} with "
                    f"variance={denoiser.variance!r} needs {needed[name]}."
                )
    num_classes = network.num_classes
    if num_classes is not None and data.states_classes and not 0 < (data.num_classes or 0) <= num_classes:
        raise ValueError(
            f"num_classes = {num_classes} of {network.name} does not fit {data.name}, which has "
            f"{data.num_classes or 'no'} classes."
        )
    _check_conditions(data, module)


def _check_conditions(data: DataSpec, module: "DDPM") -> None:
    """Raises a ValueError if the network's condition is missing, or has other channels, or is not taken."""
    name, shape, network = data.name, data.cond_shape, module.denoiser.network_spec
    if module.condition is not None:
        name = type(module.condition).__name__
        shape = None if data.image_shape is None else module.condition(torch.zeros(1, *data.image_shape)).shape[1:]
    channels, found = network.cond_channels, None if shape is None else shape[0]
    known = shape is not None or (module.condition is None and data.states_conditions)
    if known and channels != found:
        conditions = "no conditions" if found is None else f"conditions of {found} channels"
        raise ValueError(f"cond_channels = {channels} of {network.name} does not fit {name}, which has {conditions}.")


class SpeedHint(Callback):
    """Reports at the start of a fit which configurations would make it faster; it changes no setting.

    A CPU gains from bfloat16 if it has instructions for it, and from channels-last memory in float32. A GPU gains from
    bfloat16, and from ``torch.compile`` together with channels-last memory, which alone gains nothing.
    """

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast("DDPM", pl_module)
        shape = module.data.image_shape
        names = self._faster_settings(
            trainer, module.denoiser.network, num_pixels=0 if shape is None else math.prod(shape[1:])
        )
        if names:
            overlays = " ".join(f"--config {name}" for name in names)
            rank_zero_info(f"Training would be faster on this machine with {overlays}")

    def _faster_settings(self, trainer: Trainer, network: nn.Module, num_pixels: int) -> list[str]:
        compiled, channels_last = is_compiled(network), is_channels_last(network)
        device = trainer.strategy.root_device.type
        full_precision = str(trainer.precision) == "32-true"
        if device == "cpu" and full_precision and num_pixels >= MIN_PIXELS:
            read: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # absent from torch 2.9
            capabilities = read()
            if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
                return ["bf16"]
            return [] if channels_last else ["channels_last"]
        if device != "cuda":
            return []
        missing = {
            "bf16": full_precision and torch.cuda.is_bf16_supported(including_emulation=False),
            "channels_last": not channels_last,
            "compile": not compiled,
        }
        return [name for name, faster in missing.items() if faster]


def is_compiled(network: nn.Module) -> bool:
    """Returns whether a network is compiled, in place or by `torch.compile`."""
    return network._compiled_call_impl is not None or hasattr(network, "_orig_mod")


def is_channels_last(network: nn.Module) -> bool:
    """Returns whether the weights of a network's convolutions have channels-last memory format."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    weights = [weight for weight in network.parameters() if weight.ndim in formats and min(weight.shape[1:]) > 1]
    return bool(weights) and all(weight.is_contiguous(memory_format=formats[weight.ndim]) for weight in weights)
