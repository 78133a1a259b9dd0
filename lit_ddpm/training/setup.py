"""Checks before training: whether model and data fit."""

from typing import TYPE_CHECKING

import torch

from lit_ddpm.data.protocols import DataInfo
from lit_ddpm.diffusion.decoder import Decoder, DiscretizedGaussian, GaussianDecoder
from lit_ddpm.diffusion.network import ImageNetwork, SpatialNetwork

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM


class DataDefaults:
    """The settings of a `DDPM` that follow from its data unless they are given: the decoder, and whether to clip."""

    def __init__(self, clip: bool | None) -> None:
        self._clip = clip
        self._decoder: Decoder | None = None  # of the module, if it was not given

    def decoder(self, module: "DDPM", data: DataInfo) -> Decoder:
        """Returns the decoder of a module for a dataset; one that was not given is replaced for each dataset."""
        if module.decoder is not None and module.decoder is not self._decoder:
            return module.decoder
        return GaussianDecoder() if data.real_valued else DiscretizedGaussian(data.levels or module.levels)

    def adapt(self, module: "DDPM", data: DataInfo) -> None:
        """Adapts a module to a dataset."""
        module.data_levels = self.decoder(module, data).levels
        module.standardization = data.standardization
        self.apply(module)

    def apply(self, module: "DDPM") -> None:
        """Sets decoder and clipping for the `data_levels` of a module that has seen data: pixels, or real values."""
        levels = module.data_levels
        if module.decoder is None or module.decoder is self._decoder:
            module.decoder = self._decoder = GaussianDecoder() if levels is None else DiscretizedGaussian(levels)
        if self._clip is None:
            module.denoiser.clip = levels is not None


def check_data(data: DataInfo, module: "DDPM") -> None:
    """Raises a ValueError if the levels, shape, classes or conditions of a data module do not fit the model."""
    denoiser, decoder = module.denoiser, module.decoder
    network, network_name = denoiser.network, type(denoiser.network).__name__
    if data.levels and decoder is not None and decoder.levels not in (None, data.levels):
        raise ValueError(
            f"the decoder has levels = {decoder.levels} but the images of {data.name} have levels = {data.levels}; set "
            f"the decoder's levels to {data.levels}."
        )
    parametrization = denoiser.parametrization
    if parametrization.levels is not None and parametrization.levels != module.data_levels:
        found = "real values" if module.data_levels is None else f"levels = {module.data_levels}"
        raise ValueError(
            f"levels = {parametrization.levels} of {type(parametrization).__name__} does not fit {data.name}, which "
            f"has {found}."
        )
    if data.real_valued and denoiser.clip:
        raise ValueError(f"clip = True limits x_0 to [-1, 1], which the real values of {data.name} exceed: remove it.")
    if data.image_shape is not None and isinstance(network, SpatialNetwork):
        dims = len(data.image_shape) - 1
        if network.dims != dims:
            raise ValueError(
                f"dims = {network.dims} of {network_name} does not fit image_shape = {list(data.image_shape)} from "
                f"{data.name}, which has channels and {dims} dimensions: set dims to {dims}."
            )
    if data.image_shape is not None and isinstance(network, ImageNetwork):
        channels = data.image_shape[0]
        needed = {"in_channels": channels, "out_channels": channels * denoiser.outputs}
        for name, actual in (("in_channels", network.in_channels), ("out_channels", network.out_channels)):
            if actual != needed[name]:
                raise ValueError(
                    f"{name} = {actual} of {network_name} does not fit images of image_shape = "
                    f"{list(data.image_shape)} from {data.name}: {type(parametrization).__name__} with "
                    f"variance={denoiser.variance!r} needs {needed[name]}."
                )
    num_classes = denoiser.num_classes
    if num_classes is not None and data.states_classes and not 0 < (data.num_classes or 0) <= num_classes:
        raise ValueError(
            f"num_classes = {num_classes} of {network_name} does not fit {data.name}, which has "
            f"{data.num_classes or 'no'} classes."
        )
    _check_conditions(data, module)


def _check_conditions(data: DataInfo, module: "DDPM") -> None:
    """Raises a ValueError if the network's condition is missing, or has other channels, or is not taken."""
    name, shape = data.name, data.cond_shape
    if module.condition is not None:
        name = type(module.condition).__name__
        shape = None if module.image_shape is None else module.condition(torch.zeros(1, *module.image_shape)).shape[1:]
    channels, found = module.cond_channels, None if shape is None else shape[0]
    known = shape is not None or (module.condition is None and data.states_conditions)
    if known and channels != found:
        network = type(module.denoiser.network).__name__
        conditions = "no conditions" if found is None else f"conditions of {found} channels"
        raise ValueError(f"cond_channels = {channels} of {network} does not fit {name}, which has {conditions}.")
