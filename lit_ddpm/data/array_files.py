"""Arrays from files, memory-mapped where the format allows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from lit_ddpm._internal.checks import InputError
from lit_ddpm.data.base import SPLITS

Array = str | Path | Tensor | NDArray[Any]
"""A tensor, an array of numpy, or a path such as ``data.npy`` or ``data.npz:images``."""

Arrays = Array | Mapping[str, Array]
"""An array for all splits, or one for each by name."""

SUFFIXES = (".npy", ".npz", ".pt", ".safetensors")


class ArrayReader:
    """Reads arrays from files, each file once. Files are memory-mapped, except ``.npz``."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str | None, Any]] = {}

    def splits(self, source: Arrays | None, setting: str) -> dict[str, Tensor]:
        """Returns the array of each split, ``train`` at least; nothing for None. `setting` is the name in messages.

        Raises:
            ValueError: If ``train`` is missing or a split is unknown, or an array cannot be read.
        """
        if source is None:
            return {}
        if not isinstance(source, Mapping):
            return {"train": self._array(source, setting)}
        unknown = [name for name in source if name not in SPLITS]
        if unknown or "train" not in source:
            raise InputError(
                f"{setting} has the splits {', '.join(source)}: they must be train and, if there are any, val and test."
            )
        return {SPLITS[name]: self._array(array, f"{setting}.{name}") for name, array in source.items()}

    def _array(self, source: Array, setting: str) -> Tensor:
        """Returns an array; for a file with several, the name of one follows the path after a colon."""
        if not isinstance(source, str | Path):
            return _as_tensor(source, setting)
        path, name = _path_and_name(str(source))
        if path not in self._files:
            self._files[path] = _read(path, setting)
        arrays = self._files[path]
        if name not in arrays and (name is not None or len(arrays) > 1):
            names = ", ".join(map(str, arrays))
            raise InputError(
                f"{setting} = {source} must name one of the arrays of the file, as in {path}:NAME: {names}."
            )
        return _as_tensor(arrays[name] if name in arrays else next(iter(arrays.values())), setting)


def file_identity(source: Arrays) -> str | None:
    """Returns the names, sizes and modification times of files; None if an array is in memory."""
    if isinstance(source, Mapping):
        parts = [file_identity(array) for array in source.values()]
        return None if None in parts else " ".join(map(str, parts))
    if not isinstance(source, str | Path):
        return None
    stat = _path_and_name(str(source))[0].stat()
    return f"{source} {stat.st_size} {stat.st_mtime_ns}"


def _as_tensor(array: Tensor | NDArray[Any], setting: str) -> Tensor:
    """Returns an array as a tensor on the CPU."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    array = np.asarray(array)
    try:
        return torch.from_numpy(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
    except TypeError:
        raise InputError(f"{setting} is an array of {array.dtype}: it must be of numbers.") from None


def _path_and_name(source: str) -> tuple[Path, str | None]:
    for suffix in SUFFIXES:
        stem, colon, name = source.partition(f"{suffix}:")
        if colon:
            return Path(stem + suffix), name
    return Path(source), None


def _read(path: Path, setting: str) -> dict[str | None, Any]:
    """Returns the arrays of a file by name; the only one of a file without names is called None."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{setting} = {path} must be a file of the format {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise InputError(f"{setting} = {path} does not exist.")
    try:
        content = _load(path)
    except Exception as error:  # of many kinds, from three libraries
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{setting} = {path} is damaged, or does not load safely ({reason}).") from None
    arrays = dict(content) if isinstance(content, Mapping) else {None: content}
    if not arrays or not all(isinstance(array, Tensor | np.ndarray) for array in arrays.values()):
        raise InputError(f"{setting} = {path} must contain an array, or a dict of arrays by name.")
    return arrays


def _load(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="c")  # copy-on-write: torch does not accept read-only memory
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return load_file(path)
