"""The bound of each image, from which differences of two models get paired errors."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Column = NDArray[Any]  # float64, or int64 for the index


class ImageLedger:
    """The columns of a ledger for each image by its index in the dataset, in float64 on the CPU."""

    def __init__(self) -> None:
        self._index: list[Tensor] = []
        self._columns: dict[str, list[Tensor]] = {}

    def update(self, index: Tensor, columns: dict[str, Tensor]) -> None:
        """Adds images with their `index` and their columns, each ``[B]``."""
        self._index.append(index.cpu())
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values.cpu().double())

    def gather(self, reduce: Callable[[Tensor, str], Tensor] | None, names: tuple[str, ...]) -> dict[str, Column]:
        """Returns the columns `names` of the images of all ranks, in the order of their ``index``, another column.

        `reduce` combines a tensor of every rank by ``"max"`` or ``"sum"``; it is None for a single rank.
        """
        index = torch.cat(self._index) if self._index else torch.zeros(0, dtype=torch.int64)
        size = int(index.max()) + 1 if len(index) else 0
        if reduce is not None:
            size = int(reduce(torch.tensor(size), "max"))
        table = torch.zeros(len(names) + 1, size, dtype=torch.float64)
        table[0, index] = 1
        for row, name in enumerate(names, 1):
            table[row, index] = torch.cat(self._columns[name]) if len(index) else table.new_zeros(0)
        if reduce is not None:
            table = reduce(table, "sum").cpu()
        seen = table[0] > 0
        columns = {name: values[seen].numpy() for name, values in zip(names, table[1:], strict=True)}
        return {"index": seen.nonzero().flatten().numpy(), **columns}
