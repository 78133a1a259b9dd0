"""What a `DDPM` adds to a Trainer, and the check before training: whether model and data fit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lightning import Callback

from lit_ddpm._internal.checks import InputError
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.training.cost import CostReport
from lit_ddpm.training.distributed import GatherFullWeights
from lit_ddpm.training.feedback import ImportanceFeedback
from lit_ddpm.training.log_bound import LogBound
from lit_ddpm.training.optimization import SkipNonFinite

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM


def internal_callbacks(attached: Sequence[Callback]) -> list[Callback]:
    """Returns the callbacks that a `DDPM` adds to a Trainer: one of each class that none of the `attached` is of."""
    kinds = GatherFullWeights, LogBound, SkipNonFinite, ImportanceFeedback, CostReport
    return [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in attached)]


def check_data(data: DataSpec, module: "DDPM") -> None:
    """Raises a ValueError if the levels, shape, classes or conditions of a data module do not fit the model."""
    denoiser, decoder, network = module.denoiser, module.decoder, module.denoiser.network_spec
    if data.levels and decoder.levels not in (None, data.levels):
        raise InputError(
            f"the decoder has levels = {decoder.levels} but the images of {data.name} have levels = {data.levels}; set "
            f"the decoder's levels to {data.levels}."
        )
    parametrization = denoiser.parametrization
    if parametrization.levels is not None and parametrization.levels != decoder.levels:
        found = "real values" if decoder.levels is None else f"levels = {decoder.levels}"
        raise InputError(
            f"levels = {parametrization.levels} of {type(parametrization).__name__} does not fit {data.name}, which "
            f"has {found}."
        )
    if data.real_valued and denoiser.clip:
        raise InputError(f"clip = True limits x_0 to [-1, 1], which the real values of {data.name} exceed: remove it.")
    if data.image_shape is not None and network.dims is not None:
        dims = len(data.image_shape) - 1
        if network.dims != dims:
            raise InputError(
                f"dims = {network.dims} of {network.name} does not fit image_shape = {list(data.image_shape)} from "
                f"{data.name}, which has channels and {dims} dimensions: set dims to {dims}."
            )
    if data.image_shape is not None:
        channels = data.image_shape[0]
        needed = {"in_channels": channels, "out_channels": channels * denoiser.outputs}
        for name, actual in (("in_channels", network.in_channels), ("out_channels", network.out_channels)):
            if actual not in (None, needed[name]):
                raise InputError(
                    f"{name} = {actual} of {network.name} does not fit images of image_shape = "
                    f"{list(data.image_shape)} from {data.name}: {type(parametrization).__name__} with "
                    f"variance={denoiser.variance!r} needs {needed[name]}."
                )
    num_classes = network.num_classes
    if num_classes is not None and data.states_classes and not 0 < (data.num_classes or 0) <= num_classes:
        raise InputError(
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
        raise InputError(f"cond_channels = {channels} of {network.name} does not fit {name}, which has {conditions}.")
