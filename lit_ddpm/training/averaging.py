"""Averaged weights: which callback averages, and whether a module holds the average."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM


@runtime_checkable
class SwappedWeights(Protocol):
    """An averaging callback that knows whether the module holds the average, such as `EMA`."""

    swapped: bool


def averaging_callback(trainer: Trainer) -> WeightAveraging | None:
    """Returns the callback of a Trainer that averages weights, such as `EMA` or Lightning's ``EMAWeightAveraging``."""
    return next((callback for callback in _callbacks(trainer) if isinstance(callback, WeightAveraging)), None)


def evaluates_average(trainer: Trainer, module: "DDPM") -> bool:
    """Returns whether a command evaluates averaged weights; a fit does so in its validations and at its end."""
    return averaging_callback(trainer) is not None if trainer.state.fn == "fit" else module.averaged


def holds_average(trainer: Trainer, callback: Callback | None = None) -> bool:
    """Returns whether a fit has put the average into its module now, as a `callback` of the Trainer sees it."""
    averaging = averaging_callback(trainer) if trainer.state.fn == "fit" else None
    if averaging is None or isinstance(averaging, SwappedWeights):
        return averaging is not None and averaging.swapped
    # Lightning 2.6 swaps back at the end of a validation epoch, and swaps again at the end of training.
    callbacks = _callbacks(trainer)
    is_earlier = callback is not None and callbacks.index(averaging) < callbacks.index(callback)
    return is_earlier != (trainer.validating or trainer.sanity_checking)


@contextmanager
def averaged_weights(trainer: Trainer, pl_module: LightningModule, callback: Callback) -> Iterator[None]:
    """Gives a module its averaged weights within a block, if a callback of the Trainer averages them.

    It is meant for ``on_validation_epoch_end`` and ``on_train_end`` of `callback`, which may come before or after the
    averaging callback in the Trainer's list. Outside of a fit the module keeps its weights.
    """
    averaging = averaging_callback(trainer) if trainer.state.fn == "fit" else None
    if averaging is None or holds_average(trainer, callback):
        yield
        return
    averaging._swap_models(pl_module)  # of Lightning 2.6, without a public name
    try:
        yield
    finally:
        averaging._swap_models(pl_module)


def _callbacks(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    return callbacks
