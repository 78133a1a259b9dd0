"""The base class of callbacks for `DDPM`."""

import math

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least
from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.training.averaging import averaged_weights
from lit_ddpm.training.distributed import full_weights
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.sampling import draw


class DDPMCallback(Callback):
    """A callback that works with a `DDPM` only, at every validation or at every n-th epoch.

    Args:
        every_n_epochs: How often the callback is due, see `is_due`.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        check_at_least(self, 1, every_n_epochs=every_n_epochs)
        self.every_n_epochs = every_n_epochs

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.ddpm(pl_module)
        if stage == "fit":
            self._check_interval(trainer)

    def ddpm(self, pl_module: LightningModule) -> DDPM:
        """Returns the module as a `DDPM`."""
        if not isinstance(pl_module, DDPM):
            raise InputError(f"{type(self).__name__} needs a DDPM, not a {type(pl_module).__name__}.")
        return pl_module

    def draw(
        self, trainer: Trainer, module: DDPM, num_images: int, seed: int = 0, sampler: Sampler | None = None
    ) -> Tensor:
        """Draws images 0 to ``num_images - 1`` of a seed, ``[num_images, C, ...]`` on the CPU of every rank.

        They are those of `DDPM.sample`, drawn by all ranks, which must all call this method. The weights are averaged
        if a callback of the Trainer averages them, wherever it is in the list. Training is the same without the call.
        It works in ``on_validation_epoch_end``, ``on_train_end`` and the hooks of ``validate`` and ``test``.
        """
        sampler = sampler or module.sampler
        with averaged_weights(trainer, module, self), full_weights(trainer, module.denoiser.network):
            return torch.cat(draw(trainer, module, num_images, seed, sampler, Tensor.cpu, "drawing"))

    def _check_interval(self, trainer: Trainer) -> None:
        """Raises a ValueError if the callback would never be due in a fit that is long enough for it."""
        epochs, every, validation = trainer.max_epochs or 0, self.every_n_epochs, trainer.check_val_every_n_epoch
        if validation is not None and max(every, validation) <= epochs < math.lcm(every, validation):
            raise InputError(
                f"every_n_epochs = {every} of {type(self).__name__} never meets a validation: with "
                f"check_val_every_n_epoch = {validation} and max_epochs = {epochs} it must be a multiple or a divisor "
                f"of {validation}."
            )

    def is_due(self, trainer: Trainer) -> bool:
        """Returns whether to act in the current validation: in ``validate``, and every n-th epoch of a fit."""
        if trainer.sanity_checking:
            return False
        return trainer.state.fn == "validate" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
