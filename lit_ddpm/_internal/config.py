"""Objects that can be written down as plain data and built again.

A checkpoint must load with ``weights_only=True``, which allows numbers, strings and containers but no pickled
objects. `Configurable` remembers the arguments of a constructor and `as_config` turns them into the
``class_path`` / ``init_args`` form that the command line reads too.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


class Configurable:
    """Remembers what its constructor was called with, for `as_config`; subclasses need to do nothing.

    A dataclass needs no such memory: its fields say it.
    """

    _init_call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wraps the constructor of each subclass; the outermost one called is the one remembered."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            # mypy has no type for replacing a constructor
            cls.__init__ = _remember_call(cls.__init__)  # type: ignore[method-assign]


def _remember_call(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapped(self: Configurable, *args: Any, **kwargs: Any) -> None:
        if "_init_call" not in self.__dict__:
            # Not setattr: a torch module accepts no attributes before its own constructor has run.
            object.__setattr__(self, "_init_call", (args, kwargs))
        init(self, *args, **kwargs)

    return wrapped


def as_config(value: Any) -> Any:
    """The plain data that describes `value`: numbers, strings, lists, dicts and nested ``class_path`` entries.

    Raises:
        TypeError: If `value` holds an object that is neither plain nor a `Configurable` of an importable class.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [as_config(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_config(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Configurable):
        kind = type(value)
        if getattr(importlib.import_module(kind.__module__), kind.__qualname__, None) is kind:
            if is_dataclass(value) and "_init_call" not in vars(value):
                arguments = {field.name: getattr(value, field.name) for field in fields(value)}
            else:
                args, kwargs = value._init_call
                arguments = inspect.signature(kind).bind(*args, **kwargs).arguments
            init_args = {name: as_config(item) for name, item in arguments.items()}
            return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": init_args}
    raise TypeError(f"{type(value).__name__} cannot be written down as plain data.")
