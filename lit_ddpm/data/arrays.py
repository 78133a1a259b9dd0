"""Arrays of any number of dimensions: sequences, images and volumes, of pixel levels or real values."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm.data.array_files import ArrayReader, Arrays, file_identity
from lit_ddpm.data.base import Batch, ImageDataModule, ImageTensors, hides_progress, rows_of_missing_splits
from lit_ddpm.data.pixels import TYPE_LEVELS, Standardization, level_dtype, take

LEVELS = {torch.bool: 2, **TYPE_LEVELS}
"""The number of levels of the types whose values are all used."""

CHUNK = 2**24  # values that are read at once to check them


@dataclass(frozen=True, kw_only=True)
class ArrayRows(ImageTensors):
    """Some rows of an array that may be memory-mapped, with labels and conditions."""

    rows: Tensor  # int64 [N], of `images` and `cond`; `labels` are [N]
    dtype: torch.dtype  # of the images of a batch
    file_identity: str | None  # of the images; None if they are in memory

    @override
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        rows = self.rows[chosen]
        conditions = () if self.cond is None else (take(self.cond, rows),)
        return take(self.images, rows).to(self.dtype), self.labels[chosen], *conditions

    @override
    def fingerprint(self) -> str:
        identity = super().fingerprint() if self.file_identity is None else self.file_identity
        return hashlib.sha256(identity.encode() + self.rows.numpy().tobytes()).hexdigest()

    def check(self, array: Tensor, name: str, levels: int | None) -> None:
        """Raises a ValueError for the first row of an array with a value that is not finite or not a level."""
        for rows, values in self.chunks(array, f"checking {name}"):
            good = torch.isfinite(values) if levels is None else (values.long() >= 0) & (values.long() < levels)
            if not bool(good.all()):
                row, value = int(rows[~good.flatten(1).all(1)][0]), take(values, ~good)[0].item()
                allowed = "finite" if levels is None else f"0 to {levels - 1}, one of the {levels} levels"
                raise InputError(f"row {row} of {name} has the value {value}: it must be {allowed}.")

    def chunks(self, array: Tensor, description: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields numbers ``[B]`` of the rows and their values in an array ``[B, C, ...]``, with a progress bar."""
        parts = torch.split(self.rows, max(1, CHUNK // max(1, array[:1].numel())))
        for rows in tqdm(parts, description, leave=False, disable=hides_progress(len(parts), 10)):
            yield rows, take(array, rows)


class ArrayDataModule(ImageDataModule):
    """Arrays ``[N, C, ...]`` in memory or in files: sequences ``[N, C, L]``, images, volumes ``[N, C, D, H, W]``.

    - Integers are pixel levels: 256 for uint8, 65,536 for uint16, and `levels` for other types. The bound is in
      bits/dim.
    - Floating-point numbers are real values. They are standardized by the mean and standard deviation of each channel
      in the training split, and samples are returned to the units of the data. The bound is in nats/dim of the
      standardized values.

    A path is a ``.npy``, ``.npz``, ``.pt`` or ``.safetensors`` file, followed by a colon and the name of the array if
    there are several: ``data.npz:images``. Files are memory-mapped, except ``.npz``.

    Args:
        data: An array or path, or one for each split: ``train``, ``val`` and ``test``. A missing split is chosen from
            ``train``.
        labels: Classes in the form of `data`: integers ``[N]`` from 0 on, and -1 for a row without a label.
        conditions: The conditions of a network with ``cond_channels``, in the form of `data`: ``[N, C', ...]``. uint8
            and uint16 are scaled to [-1, 1]; real values reach the network as they are.
        levels: The number of levels of integers, which are 0 to ``levels - 1``; that of their type if None.
        val_size: The number of validation rows, chosen at random; a tenth, at least one, if None. Ignored if `data` has
            a validation split.
        test_size: The number of test rows, likewise.
        split_seed: The seed of the choice.
        **settings: See `ImageDataModule`.

    Raises:
        ValueError: In `setup`, if an array cannot be read, has another length or shape than it must, or has values that
            are NaN, infinite or not among the levels.
    """

    def __init__(
        self,
        data: Arrays,
        labels: Arrays | None = None,
        conditions: Arrays | None = None,
        levels: int | None = None,
        val_size: int | None = None,
        test_size: int | None = None,
        split_seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.data = data
        self.labels = labels
        self.conditions = conditions
        self.integer_levels = levels
        self.val_size = val_size
        self.test_size = test_size
        self.split_seed = split_seed

    @override
    def splits(self) -> Mapping[str, ArrayRows]:
        reader = ArrayReader()
        data, labels = reader.splits(self.data, "data"), reader.splits(self.labels, "labels")
        conditions = reader.splits(self.conditions, "conditions")
        _check_shapes(data, "data")
        _check_shapes(conditions, "conditions")
        for setting, arrays in (("labels", labels), ("conditions", conditions)):
            if arrays:
                _check_lengths(arrays, data, setting)
        self.image_shape = tuple(data["train"].shape[1:])
        self.cond_shape = tuple(conditions["train"].shape[1:]) if conditions else None
        self.levels = self._levels_of(data["train"])
        self.num_classes = _num_classes(labels) if labels else None

        dtype = torch.float32 if self.levels is None else level_dtype(self.levels)
        chosen = rows_of_missing_splits(len(data["train"]), data, self.val_size, self.test_size, self.split_seed)
        splits = {}
        for name in ("train", "val", "test"):
            origin = "train" if name in chosen else name
            rows = torch.tensor(chosen[name]) if name in chosen else torch.arange(len(data[name]))
            label = labels[origin].long()[rows] if labels else torch.zeros(len(rows), dtype=torch.int64)
            split = splits[name] = ArrayRows(
                images=data[origin],
                labels=label,
                cond=conditions.get(origin),
                rows=rows,
                dtype=dtype,
                file_identity=file_identity(self.data),
            )
            split.check(split.images, f"data.{origin}", self.levels)
            if split.cond is not None and split.cond.is_floating_point():
                split.check(split.cond, f"conditions.{origin}", None)
        if self.levels is None:
            self.standardization = _standardization_of(splits["train"])
        return splits

    def _levels_of(self, array: Tensor) -> int | None:
        """Returns the number of levels of an array; None for real values."""
        levels = self.integer_levels
        if array.is_floating_point():
            fits = levels is None
        else:
            levels = levels or LEVELS.get(array.dtype, 0)
            fits = 2 <= levels <= 65_536 and not array.is_complex()
        if not fits:
            raise InputError(
                f"levels = {self.integer_levels} of ArrayDataModule does not fit data of {array.dtype}: it must be "
                "None for real values, and 2 to 65536 for integers."
            )
        return levels


def _check_shapes(arrays: Mapping[str, Tensor], setting: str) -> None:
    """Raises a ValueError if an array is not ``[N, C, ...]``, or has another shape or type than that of ``train``."""
    for name, array in arrays.items():
        first = arrays["train"]
        if array.ndim < 2 or len(array) == 0:
            raise InputError(f"{setting}.{name} has the shape {list(array.shape)}: it must be [N, C, ...].")
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            raise InputError(
                f"{setting}.{name} has rows of {list(array.shape[1:])} and {array.dtype}: they must be as in "
                f"{setting}.train, {list(first.shape[1:])} and {first.dtype}."
            )


def _check_lengths(arrays: Mapping[str, Tensor], data: Mapping[str, Tensor], setting: str) -> None:
    """Raises a ValueError if the splits or their lengths differ from those of the data."""
    for name in {**data, **arrays}:
        rows, needed = len(arrays.get(name, ())), len(data.get(name, ()))
        if rows != needed:
            raise InputError(
                f"{setting}.{name} has {rows:,} rows: it must have one for each of the {needed:,} of data.{name}."
            )


def _num_classes(labels: Mapping[str, Tensor]) -> int:
    for name, array in labels.items():
        if array.is_floating_point() or array.is_complex() or array.ndim != 1 or int(array.long().min()) < -1:
            raise InputError(f"labels.{name} must be integers [N] from 0 on, or -1 for a row without a label.")
    return max(1, *(int(array.long().max()) + 1 for array in labels.values()))


def _standardization_of(train: ArrayRows) -> Standardization:
    """Returns the mean and standard deviation of each channel, and logs them."""
    count, shift, total, squares = 0, None, torch.zeros(()), torch.zeros(())
    for _, values in train.chunks(train.images, "measuring data"):
        values = values.double().transpose(0, 1).flatten(1)
        shift = values.mean(1, keepdim=True) if shift is None else shift  # of the first rows, for an exact variance
        count += values.shape[1]
        total, squares = total + (values - shift).sum(1), squares + ((values - shift) ** 2).sum(1)
    assert shift is not None
    mean, std = shift[:, 0] + total / count, (squares / count - (total / count) ** 2).clamp(min=0).sqrt()
    if not bool((std > 0).all()):
        channel = int((std == 0).nonzero()[0])
        raise InputError(f"channel {channel} of data has the value {mean[channel]:g} in all training rows: remove it.")
    listed = [", ".join(f"{x:.4g}" for x in values.tolist()) for values in (mean, std)]
    rank_zero_info(
        f"Values are standardized by channel with the mean {listed[0]} and the standard deviation {listed[1]} of the "
        f"training split; the bound in the units of the data is {std.log().mean():.4f} nats/dim more."
    )
    return Standardization(mean.float(), std.float())
