"""Bad input as one readable sentence, from any library that reports it."""

import argparse
import inspect
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

import lit_ddpm
from lit_ddpm import callbacks, data, metrics
from lit_ddpm._internal.config import constructor_parameters
from lit_ddpm._internal.stop import stop

# Exceptions for bad input, by the package that raises them. Others are faults of a program and keep their traceback: a
# TypeError in lit_ddpm, or a RuntimeError except where Lightning's Trainer reads its settings.
BAD_INPUT = (ValueError, FloatingPointError, OSError, ImportError, MisconfigurationException)
RAISED_BY = {
    "lit_ddpm": BAD_INPUT,
    "lightning": (*BAD_INPUT, TypeError),
    "torch": (*BAD_INPUT, TypeError),
    "jsonargparse": (*BAD_INPUT, TypeError),
}
PACKAGE = Path(__file__).parent.parent
TRAINER_SETTINGS = "lightning.pytorch.trainer.connectors"

# Packages whose frames are not a user's program, next to the standard library and those above.
LIBRARIES = {"PIL", "datasets", "diffusers", "fsspec", "huggingface_hub", "lightning_utilities", "matplotlib", "numpy"}
LIBRARIES |= {"pyarrow", "safetensors", "sklearn", "tensorboard", "torch_fidelity", "torchmetrics", "torchvision"}
LIBRARIES |= {"tqdm", "wandb", "yaml"}

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


def is_about_input(error: BaseException) -> bool:
    """Returns whether this package or a library recognized bad input, without a user's program on the way."""
    modules = _modules(error)[1:]  # the first one catches the error
    cause = _cause(error)
    while cause is not None:  # jsonargparse wraps the errors of constructors
        modules = _modules(cause) + modules
        cause = _cause(cause)
    packages = [module.split(".")[0] for module in modules]
    files = re.findall(r'File "([^<].*?)", line', str(error))  # of a worker process, whose traceback is in the message
    packages += map(_package_of, files)
    if not packages or not {*RAISED_BY, *LIBRARIES, *sys.stdlib_module_names}.issuperset(packages):
        return False
    if files:
        return isinstance(error, BAD_INPUT) and packages[-1] == "lit_ddpm"
    if isinstance(error, RuntimeError):
        return modules[-1].startswith(TRAINER_SETTINGS)
    return isinstance(error, (OSError, *RAISED_BY.get(packages[-1], ())))


def _cause(error: BaseException) -> BaseException | None:
    """Returns the error that another one was raised from or while handling, unless it was raised ``from None``."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _package_of(file: str) -> str:
    """Returns the top-level package or module of a source file; "" for a file of a user's program."""
    path = Path(file)
    if path.is_relative_to(PACKAGE):
        return PACKAGE.name
    for name in ("platlib", "purelib", "stdlib"):  # the first two are folders of the third
        place = sysconfig.get_paths()[name]
        if path.is_relative_to(place):
            return path.relative_to(place).parts[0].removesuffix(".py")
    return ""


def _modules(error: BaseException) -> list[str]:
    """Returns the module of each frame of an error, from the outermost to the one that raised it."""
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]


def sentence_of(error: BaseException) -> str | None:
    """Returns the sentence for an error, or None if it is not bad input or its traceback is wanted."""
    if shows_tracebacks():
        return None
    if type(error).__module__.startswith("wandb.errors"):
        return (
            f"W&B cannot start ({error}): log in with `wandb login`, or keep the run on disk with WANDB_MODE=offline."
        )
    if not is_about_input(error):
        return None
    message = str(error)
    if "Original Traceback" in message:  # of a worker process
        message = message.strip().splitlines()[-1].partition(": ")[2]
    return one_sentence(message) if "Does not validate against any" in message else message


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
