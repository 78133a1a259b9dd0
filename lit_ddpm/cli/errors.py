"""Bad input as one readable sentence."""

import argparse
import inspect
import os
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

import lit_ddpm
from lit_ddpm import callbacks, data, metrics
from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import constructor_parameters
from lit_ddpm._internal.stop import stop

# What torch and Lightning raise for bad settings, next to a MisconfigurationException.
BAD_SETTING = (ValueError, TypeError, RuntimeError, ImportError, OSError)

# What surrounds the reason in a message of jsonargparse.
NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Subclass types expect",
    "a class path (str)",
    "a dict with",
)


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports an error in one sentence and does not complete abbreviations."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False)

    @override
    def error(self, message: str) -> NoReturn:
        stop(f"{self.prog.split()[-1]}: {message}")


def shows_tracebacks() -> bool:
    """Returns whether ``LIT_DDPM_TRACEBACK=1`` asks for the traceback of every error."""
    return os.environ.get("LIT_DDPM_TRACEBACK") == "1"


def sentence_of(error: Exception) -> str | None:
    """Returns the sentence for an error, or None if it is not bad input or its traceback is wanted."""
    if shows_tracebacks():
        return None
    if type(error).__module__.startswith("wandb.errors"):
        return (
            f"W&B cannot start ({error}): log in with `wandb login`, or keep the run on disk with WANDB_MODE=offline."
        )
    if not isinstance(error, InputError | MisconfigurationException):
        return None
    message = str(error)
    if "Original Traceback" in message:  # of a worker process
        message = message.strip().splitlines()[-1].partition(": ")[2]
    return message


@contextmanager
def reads_settings(owner: str = "") -> Iterator[None]:
    """Raises an `InputError` for the errors of torch and Lightning within a block that only reads their settings."""
    try:
        yield
    except InputError:
        raise
    except BAD_SETTING as error:
        raise InputError(f"{owner}{error}") from error


class Constructor:
    """Calls the constructors that a configuration names, and keeps their first error.

    Bad settings of a class of torch or Lightning become an `InputError`. A user's own class keeps its error.
    """

    error: Exception | None = None

    def __call__(self, kind: type[Any], /, *args: Any, **kwargs: Any) -> Any:
        """Returns an instance of `kind`."""
        of_library = kind.__module__.startswith(("torch.", "lightning."))
        try:
            with reads_settings(f"{kind.__name__}: ") if of_library else nullcontext():
                return kind(*args, **kwargs)
        except Exception as error:
            self.error = self.error or error
            raise


class OneLineParser(LightningArgumentParser):
    """A parser that reports an error in one sentence: the setting and the innermost reason."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser: its error is one attempt among several
            super().error(message, ex)
        if ex is not None and shows_tracebacks():
            raise ex
        stop(one_sentence(message))


def one_sentence(message: str) -> str:
    """Returns the innermost reason in a nested message of jsonargparse, after the name of its setting.

    For an unknown option of a class, the options of the class are listed.
    """
    setting: list[tuple[int, str]] = []
    class_path = base = ""
    best: tuple[int, str, str, str] = (-1, message, "", "")
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        depth = len(line) - len(line.lstrip())
        if key := re.fullmatch(r'Parser key "(.+?)":?(.*)', text):
            setting = [(d, name) for d, name in setting if d < depth] + [(depth, key[1])]
            text = key[2].strip()
        elif given := re.match(r"Problem with given class_path '(.+)'", text):
            class_path = given[1]
            continue
        elif types := re.match(r"Subtypes: \[(?:list\[)?(?:<class ')?([\w.]+)", text):
            base = types[1]
        if text and not text.startswith(NOISE) and depth > best[0]:
            best = (depth, text, ".".join(name for _, name in setting), class_path)
    _, reason, name, owner = best
    if value := re.fullmatch(r"Expected a dot import path string: (.*)", reason):
        return _unknown_class(name, value[1], base)
    if reason.startswith("No module named"):
        reason += ": install it, or add its folder to PYTHONPATH"
    unknown = re.search(r"Option '(\w+)' is not accepted", reason)
    known = _parameters(owner) if unknown else []
    allowed = f"; {owner} takes {', '.join(known)}" if known else ""
    where = name or (owner if owner.rpartition(".")[2] not in reason else "")
    return f"{where + ': ' if where else ''}{reason}{allowed}"


def _unknown_class(setting: str, value: str, base: str) -> str:
    """Returns the sentence for a value that is not the name of a class, with the classes of this package there are."""
    kind = pkgutil.resolve_name(base)
    public = {name: found for package in (lit_ddpm, data, callbacks, metrics) for name, found in vars(package).items()}
    classes = {name: found for name, found in public.items() if inspect.isclass(found) and issubclass(found, kind)}
    known = [name for name, found in sorted(classes.items()) if not inspect.isabstract(found) and found is not kind]
    allowed = f"one of {', '.join(known)}, or " if known else ""
    return f"{setting} = {value} is not a class: it must be {allowed}the import path of another {kind.__name__}."


def _parameters(class_path: str) -> list[str]:
    try:
        found = pkgutil.resolve_name(class_path)
        return constructor_parameters(found) if inspect.isclass(found) else list(inspect.signature(found).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
