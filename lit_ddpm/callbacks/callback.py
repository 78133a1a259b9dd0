"""The base class of callbacks for `DDPM`."""

import math

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm.training.module import DDPM


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
            raise ValueError(f"{type(self).__name__} needs a DDPM, not a {type(pl_module).__name__}.")
        return pl_module

    def _check_interval(self, trainer: Trainer) -> None:
        """Raises a ValueError if the callback would never be due in a fit that is long enough for it."""
        epochs, every, validation = trainer.max_epochs or 0, self.every_n_epochs, trainer.check_val_every_n_epoch
        if validation is not None and max(every, validation) <= epochs < math.lcm(every, validation):
            raise ValueError(
                f"every_n_epochs = {every} of {type(self).__name__} never meets a validation: with "
                f"check_val_every_n_epoch = {validation} and max_epochs = {epochs} it must be a multiple or a divisor "
                f"of {validation}."
            )

    def is_due(self, trainer: Trainer) -> bool:
        """Returns whether to act in the current validation: in ``validate``, and every n-th epoch of a fit."""
        if trainer.sanity_checking:
            return False
        return trainer.state.fn == "validate" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
