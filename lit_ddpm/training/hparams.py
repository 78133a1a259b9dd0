"""Hyperparameters as plain data, so that a checkpoint loads with ``weights_only=True``."""

import functools
import inspect
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Self

from jsonargparse import ArgumentParser
from lightning import LightningModule
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from typing_extensions import override

from lit_ddpm._internal.config import as_config, is_settings
from lit_ddpm.training.checkpoint import check_weights_fit, matching_weights


class PlainHyperparameters(LightningModule):
    """A LightningModule whose ``save_hyperparameters`` writes objects as ``class_path`` and ``init_args``.

    Lightning collects the arguments of all constructors from the subclass to the base class. Those that the subclass
    itself accepts are kept. Weights that do not fit are named in one sentence.
    """

    unsaved_arguments: tuple[str, ...] = ()
    """Arguments without a plain form, such as a network of a foreign class; ``load_from_checkpoint`` needs them again.
    """

    lost_arguments: tuple[str, ...] = ()
    """Those of the checkpoint that were not given when it was loaded."""

    def record_missing_arguments(self, unsaved: Iterable[str]) -> None:
        """Records which of the arguments that a checkpoint was written without were not given again."""
        self.lost_arguments = tuple(name for name in unsaved if name not in self.unsaved_arguments)

    @_restricted_classmethod  # Lightning's, which refuses a call of an instance
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: N805  # a class method, by the decorator
        """Loads a module, as Lightning does; `kwargs` replace arguments of the constructor."""
        # jsonargparse builds the module, and takes settings such as `Guidance` as dictionaries.
        settings = {name: as_config(value) for name, value in kwargs.items() if is_settings(value)}
        return super().load_from_checkpoint(*args, **kwargs | settings)

    def _set_hparams(self, hp: Any) -> None:  # Lightning 2.6 passes the collected arguments to this method
        if isinstance(hp, MutableMapping) and "_instantiator" not in hp:  # LightningCLI collects plain data itself
            plain: dict[str, Any] = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
            unsaved = []
            accepted = _accepted_arguments(type(self))
            for name in (name for name in hp if name in accepted):  # in the order of the constructor
                try:
                    plain[name] = as_config(hp[name])
                except TypeError:
                    if not _is_default(type(self), name, hp[name]):
                        unsaved.append(name)
            hp, self.unsaved_arguments = plain, tuple(unsaved)
        super()._set_hparams(hp)

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights; with ``strict=False`` those that fit, and logs which are taken, left and new.

        Raises:
            ValueError: If they are strict and one does not fit, or if none fits.
        """
        if strict:
            check_weights_fit(self, state_dict)
        else:
            state_dict = matching_weights(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)


def _is_default(kind: type, name: str, value: Any) -> bool:
    """Returns whether a value is the default of an argument of a class or of one of its bases.

    ``load_from_checkpoint`` builds the module with jsonargparse, which makes a default function a partial of its own.
    """
    if isinstance(value, functools.partial) and value.func.__module__.startswith("jsonargparse"):
        return True
    signatures = [inspect.signature(vars(base)["__init__"]) for base in kind.__mro__ if "__init__" in vars(base)]
    return any(name in s.parameters and s.parameters[name].default is value for s in signatures)


def _accepted_arguments(kind: type) -> set[str]:
    """Returns the names of the keyword arguments of a class, with those that its ``**kwargs`` pass to a base class."""
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        # jsonargparse reads the source, and leaves out what the class passes to its base class itself.
        return {str(name) for name in ArgumentParser().add_class_arguments(kind, fail_untyped=False)}
    return {parameter.name for parameter in parameters}
