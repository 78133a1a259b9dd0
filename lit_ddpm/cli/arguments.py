"""Arguments that a command adds by itself: the configuration of a run, and the configurations that a file extends."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import yaml

from lit_ddpm.training.run_directory import RunDirectory


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
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    return local


def with_base_configs(args: Sequence[str]) -> list[str]:
    """Inserts before each configuration file the files that it extends."""
    expanded: list[str] = []
    for position, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        if flag in ("--config", "-c"):
            path = Path(value or "".join(args[position + 1 : position + 2]))
            expanded += [f"--config={base}" for base in _bases_of(path)]
        expanded.append(arg)
    return expanded


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
    if not base.is_file():
        raise ValueError(f"extends = {name} of {path}: {base} does not exist.")
    if base in children:
        raise ValueError(f"extends = {name} of {path}: the files extend one another in a cycle.")
    return [*_bases_of(base, (*children, base)), base]


def _values_of(args: Sequence[str], flag: str) -> list[str]:
    """Returns the values of a flag, in either spelling."""
    joined = [arg.split("=", 1)[1] for arg in args if arg.startswith(f"{flag}=")]
    separate = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == flag]
    return joined + separate
