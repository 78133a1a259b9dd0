"""The slots of a diffusion model, and drawing from it."""

from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_ddpm._internal.checks import InputError, check_type
from lit_ddpm.data.protocols import HasHeldOut
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.diffusion.condition import Condition
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser
from lit_ddpm.diffusion.guidance import Guidance
from lit_ddpm.diffusion.objective import Objective, PredictionMSE, check_training
from lit_ddpm.diffusion.parametrization import EpsParametrization, Parametrization
from lit_ddpm.diffusion.sampler import AncestralSampler, Sampler
from lit_ddpm.diffusion.schedule import Schedule
from lit_ddpm.diffusion.schedules import LinearSchedule
from lit_ddpm.diffusion.timesteps import TimestepSampler, UniformTimesteps
from lit_ddpm.diffusion.variance import Variance
from lit_ddpm.nn.unet import UNet
from lit_ddpm.training.evaluation import Evaluation
from lit_ddpm.training.hparams import PlainHyperparameters
from lit_ddpm.training.optimization import OptimizerFactory
from lit_ddpm.training.sampling import HeldOut, expand_conditions


class Slots(PlainHyperparameters):
    """The constructor of `DDPM`: the parts of a model, what follows from its data, and drawing from it."""

    def __init__(
        self,
        network: nn.Module | None = None,
        schedule: Schedule | None = None,
        parametrization: Parametrization | None = None,
        objective: Objective | None = None,
        timesteps: TimestepSampler | None = None,
        decoder: Decoder | None = None,
        sampler: Sampler | None = None,
        condition: Condition | None = None,
        variance: Variance = "posterior",
        clip: bool | None = None,
        guidance: Guidance = Guidance(),
        evaluation: Evaluation = Evaluation(),
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-4, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.objective = PredictionMSE() if objective is None else objective
        self.timesteps = UniformTimesteps() if timesteps is None else timesteps
        self.sampler = AncestralSampler() if sampler is None else sampler
        check_type(self, Objective, objective=self.objective)
        check_type(self, TimestepSampler, timesteps=self.timesteps)
        check_type(self, Sampler, sampler=self.sampler)
        check_type(self, Guidance, guidance=guidance)
        check_type(self, Evaluation, evaluation=evaluation)
        self.condition = condition
        self.guidance = guidance
        self.evaluation = replace(evaluation)  # with the state of this module alone
        self.data = DataSpec()  # it states nothing until the module has seen data
        self.held_out: HeldOut | None = None  # the images whose conditions generated images get
        self._decoder, self._clip = decoder, clip
        self._make_optimizer = OptimizerFactory(optimizer, lr_scheduler)
        network = UNet() if network is None else network  # an empty container of modules is false
        check_type(self, nn.Module, network=network)
        parts = network, schedule or LinearSchedule(), parametrization or EpsParametrization()
        self.denoiser = Denoiser(*parts, variance, self._clips)
        check_training(self.denoiser, self.objective, self.timesteps)
        self.sampler.timesteps(self.denoiser.schedule)  # refuses more steps than T
        self.guidance.check(self.denoiser)

    # --- what follows from the data

    def observe(self, data: DataSpec) -> None:
        """Adopts the data: decoder and clipping that the constructor did not get are functions of them."""
        self.data = data.completed(self.data)
        self.denoiser.set_clip(self._clips)

    def condition_on(self, data: HasHeldOut, split: Literal["val", "test"]) -> None:
        """Draws under the conditions of a held-out split until the end of the command, see `sample_cond`."""
        self.held_out = HeldOut(self, data, split)

    @property
    def training_objective(self) -> Objective:
        """The objective; one that needs a decoder and has none has that of the module."""
        return self.objective.with_decoder(self.decoder)

    @property
    def decoder(self) -> Decoder:
        """The likelihood at t = 1: the one given, or that of the data."""
        return self.decoder_of(self.data)

    def decoder_of(self, data: DataSpec) -> Decoder:
        """Returns the decoder for other data."""
        return data.decoder() if self._decoder is None else self._decoder

    @property
    def _clips(self) -> bool:
        return self.decoder.levels is not None if self._clip is None else self._clip

    @property
    def levels(self) -> int:
        """The number of pixel levels of the data, or 256 for real values."""
        return self.decoder.levels or 256

    # --- what users override

    def unpack_batch(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """Splits a batch into images ``[B, C, H, W]`` in [-1, 1] and keyword arguments of the network.

        By default a batch is a tensor, or a tuple or list that starts with one. A network with ``num_classes`` gets the
        second entry as ``label``, where -1 means "no label". A network with ``cond_channels`` gets as ``cond`` what
        `condition` computes, or without one the last entry. Other entries are ignored.
        """
        entries = batch if isinstance(batch, tuple | list) else (batch,)
        x_0, cond, num_classes = entries[0], {}, self.denoiser.network_spec.num_classes
        if num_classes is not None and len(entries) > 1:
            cond["label"] = entries[1].where(entries[1] >= 0, num_classes)
        if self.condition is not None:
            cond["cond"] = self.condition(x_0)
        elif self.denoiser.network_spec.cond_channels is not None and len(entries) > 1:
            cond["cond"] = entries[-1]
        return x_0, cond

    def sample_cond(self, index: Tensor) -> dict[str, Any]:
        """Returns keyword arguments of the network for generated images, by their index, int64 ``[B]``.

        By default image i of a class-conditional network is of class ``i % num_classes``. A network with
        ``cond_channels`` draws under the conditions of held-out images: what `unpack_batch` returns for image
        ``i % N`` of the N images of the validation split, and in ``test`` and ``predict`` of the test split.
        """
        if self.held_out is not None:
            return self.held_out(index)[1]
        num_classes = self.denoiser.network_spec.num_classes
        return {} if num_classes is None else {"label": index % num_classes}

    # --- what users call

    def sample(
        self, num_images: int, seed: int = 0, first_index: int = 0, sampler: Sampler | None = None, **cond: Any
    ) -> Tensor:
        """Draws images `first_index` and following of `seed`, ``[num_images, C, H, W]``.

        Pixel levels are in about [-1, 1], and real values in the units of the data. Image i of a seed is always the
        same. The weights are those of the module: the average, if it was loaded from a checkpoint written with `EMA`.
        `sampler` replaces the module's own, and `cond` replaces entries of `sample_cond`; see `expand_conditions`.

        Raises:
            ValueError: If the module has not seen data and so has no image shape, a label is out of range, or a
                condition is missing.
        """
        if self.data.image_shape is None:
            raise InputError("image_shape is unknown until the module has seen data: load a checkpoint of a fit.")
        network, index = self.denoiser.network_spec, torch.arange(first_index, first_index + num_images)
        needed = {"label": network.num_classes, "cond": network.cond_channels}
        if any(value is not None and name not in cond for name, value in needed.items()):
            cond = self.sample_cond(index) | cond
        cond = expand_conditions(cond, num_images, network)
        cond = {name: x.to(self.device) if isinstance(x, Tensor) else x for name, x in cond.items()}
        shape = (num_images, *self.data.image_shape)
        images = (sampler or self.sampler)(self.sampling_denoiser, shape, seed, first_index, **cond)
        return self.data.in_units(images)

    @property
    def sampling_denoiser(self) -> Denoiser:
        """The denoiser for sampling, with guidance if there is any."""
        return self.guidance.guided(self.denoiser)
