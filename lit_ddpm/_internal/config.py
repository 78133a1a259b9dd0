"""Objects as plain data, so that a checkpoint loads with ``weights_only=True`` and contains no pickled objects."""

import inspect
import sys
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class Configurable:
    """A class whose instances keep each constructor argument as an attribute of the same name, as dataclasses do.

    A checkpoint names such a class and its arguments, so that ``load_from_checkpoint`` builds it again. A network of
    your own derives from this class and from ``nn.Module``.
    """


def public_path(kind: type) -> str | None:
    """Returns the shortest path to import `kind` from, such as ``lit_ddpm.LinearSchedule``; None for a local class."""
    parts = kind.__module__.split(".")
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        if getattr(sys.modules.get(module), kind.__name__, None) is kind:
            return f"{module}.{kind.__name__}"
    return None


def is_settings(value: Any) -> bool:
    """Returns whether an object is a group of settings, such as `Guidance`: the command line has its fields alone."""
    of_package = type(value).__module__.startswith("lit_ddpm.")
    return of_package and is_dataclass(value) and not isinstance(value, Configurable)


def as_config(value: Any) -> Any:
    """Returns `value` as numbers, strings, lists and dicts, with objects in the command line's ``class_path`` form.

    Raises:
        TypeError: If `value` contains an object that is neither plain data nor a `Configurable` of an importable class.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [as_config(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_config(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return value.tolist()
    if is_settings(value):
        return {each.name: as_config(getattr(value, each.name)) for each in fields(value) if each.init}
    path = public_path(type(value))
    if not isinstance(value, Configurable) or path is None:
        raise TypeError(f"{type(value).__name__} cannot be written as plain data.")
    init_args = {}
    for name in constructor_parameters(type(value)):
        if not hasattr(value, name):
            raise TypeError(f"{type(value).__name__} does not keep its argument {name} as an attribute.")
        init_args[name] = as_config(getattr(value, name))
    return {"class_path": path, "init_args": init_args}


def rebuilt(value: T, **changes: Any) -> T:
    """Returns a new object of the class of `value` with its constructor arguments, some of them changed.

    The class keeps its arguments as attributes, as `Configurable` classes and dataclasses do.
    """
    arguments = {name: getattr(value, name) for name in constructor_parameters(type(value))}
    return type(value)(**arguments | changes)


def constructor_defaults(kind: type) -> dict[str, Any]:
    """Returns the arguments of a constructor with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


def constructor_parameters(kind: type) -> list[str]:
    """Returns the names of the arguments of a constructor, with those that its ``**kwargs`` pass to a base class."""
    names: list[str] = []
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(base).parameters.values())
            names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return list(dict.fromkeys(names))
