"""Files that are complete or absent."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_ddpm._internal.checks import InputError


def create_directory(path: Path, name: str = "directory") -> None:
    """Creates a directory that a setting names, with its parents.

    Raises:
        InputError: If it cannot be created, or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"the {name} {path} is not writable ({error.strerror}).") from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, and moves the file to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def has_files(directory: Path) -> bool:
    """Returns whether a directory exists and contains anything but temporary files of an interrupted process."""
    return directory.is_dir() and any(path.suffix != ".tmp" for path in directory.iterdir())


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically; numbers that are not finite become null."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a JSON Lines file, or an empty list if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON Lines file atomically; numbers that are not finite become null."""
    with atomic_write(path) as partial:
        partial.write_text("".join(json.dumps(_finite(record), allow_nan=False) + "\n" for record in records))


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes arrays by name as a compressed ``.npz``, atomically."""
    keywords: dict[str, Any] = arrays
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **keywords)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Returns the arrays of a file of `write_arrays`."""
    with np.load(path) as file:
        return dict(file)


def number_of(value: float | None) -> float:
    """Returns a number of a JSON file, where null stands for one that is not finite."""
    return math.nan if value is None else value


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
