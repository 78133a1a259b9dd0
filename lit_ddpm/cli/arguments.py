"""Arguments that a command adds by itself: the configuration of a run, and the files of configurations."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import yaml

from lit_ddpm._internal.checks import InputError
from lit_ddpm.cli.configs import find_config
from lit_ddpm.training.run_directory import RunDirectory

BARE_FLAGS = ("--exact", "--number_run")
"""Flags that may be given without a value."""


def with_run_config(args: Sequence[str]) -> list[str]:
    """Adds the configuration of the run that a checkpoint belongs to, if the arguments name no configuration."""
    values = _values_of(args, "--ckpt_path")
    if not values or _values_of(args, "--config") or _values_of(args, "-c"):
        return list(args)
    run = RunDirectory.of_checkpoint(Path(values[0]))
    return list(args) if run is None else [args[0], "--config", str(run.config), *args[1:]]


def local_copy(path: str) -> Path:
    """Returns the path of a checkpoint, copied to a temporary directory if it is a URL that fsspec reads.

    Lightning reads the settings of the model from local files only.
    """
    if "://" not in path:
        return Path(path)
    directory = Path(tempfile.mkdtemp(prefix="lit_ddpm_"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    local = directory / PurePosixPath(path).name
    try:
        with fsspec.open(path, "rb") as remote, local.open("wb") as file:
            shutil.copyfileobj(remote, file)
    except Exception as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    return local


def with_bare_flags(args: Sequence[str]) -> list[str]:
    """Gives the value "true" to each of the `BARE_FLAGS` that has none."""
    return [
        f"{arg}=true" if arg in BARE_FLAGS and following.startswith("-") else arg
        for arg, following in pairwise([*args, "--"])
    ]


def with_config_files(args: Sequence[str]) -> list[str]:
    """Replaces the name of each configuration by its file, and inserts the files that it extends before it."""
    expanded: list[str] = []
    remaining = iter(args)
    for arg in remaining:
        flag, joined, value = arg.partition("=")
        if flag not in ("--config", "-c"):
            expanded.append(arg)
        elif joined or (value := next(remaining, "")):
            path = find_config(value)
            expanded += [f"--config={file}" for file in (*_bases_of(path), path)]
        else:
            expanded.append(arg)  # the parser reports the missing value
    return expanded


@contextmanager
def temporary_config(content: dict[str, Any]) -> Iterator[str]:
    """Yields the path of a file with a configuration, which exists within the block."""
    with tempfile.TemporaryDirectory(prefix="lit_ddpm_") as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        yield str(path)


def with_last_config(args: Sequence[str], file: str) -> list[str]:
    """Inserts a configuration after the others and before the flags, which override them."""
    command, *rest = args
    configs, flags = [], []
    remaining = iter(rest)
    for arg in remaining:
        flag, joined, _ = arg.partition("=")
        if flag in ("--config", "-c"):
            configs += [arg] if joined else [arg, next(remaining, "")]
        else:
            flags.append(arg)
    return [command, *configs, f"--config={file}", *flags]


def _bases_of(path: Path, children: tuple[Path, ...] = ()) -> list[Path]:
    """Returns the files that a configuration extends, the most basic first."""
    try:
        content: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeError, yaml.YAMLError):
        return []  # the parser reports it
    name = content.get("extends") if isinstance(content, dict) else None
    if name is None:
        return []
    base = path.parent / str(name)
    base = base if base.is_file() else find_config(str(name), f"extends of {path}")
    if base in children:
        raise InputError(f"extends = {name} of {path}: the files extend one another in a cycle.")
    return [*_bases_of(base, (*children, base)), base]


def _values_of(args: Sequence[str], flag: str) -> list[str]:
    """Returns the values of a flag, in either spelling."""
    joined = [arg.split("=", 1)[1] for arg in args if arg.startswith(f"{flag}=")]
    separate = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == flag]
    return joined + separate
