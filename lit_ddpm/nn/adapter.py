"""Networks with another interface."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import Configurable


class NetworkAdapter(Configurable, nn.Module):
    """Calls a network of another library as ``network(x_t, time_scale (t + time_offset))``, for t = 1..T.

    Args:
        network: The network.
        time_offset: -1 for a network whose timesteps are 0..T-1.
        time_scale: 1/T for a network that takes a number in [0, 1]. With 1 the time remains an integer.
        output: The result's attribute, key or index that contains the prediction; None if the result is a tensor.
        label: The network's name for the argument ``label``.
        num_classes: The number of classes; None for a network without labels.
        arguments: Further keyword arguments of each call.
        no_label: Whether the label `num_classes` means "no label". Calls without labels, label dropout and guidance use
            it.
        time: What it gets as t, see `UNet`.
    """

    def __init__(
        self,
        network: nn.Module,
        time_offset: int = 0,
        time_scale: float = 1.0,
        output: str | int | None = None,
        label: str = "label",
        num_classes: int | None = None,
        arguments: dict[str, Any] | None = None,
        no_label: bool = True,
        time: Literal["t", "log_snr"] = "t",
    ) -> None:
        super().__init__()
        self.network = network
        self.time_offset = time_offset
        self.time_scale = time_scale
        self.output = output
        self.label = label
        self.num_classes = num_classes
        self.arguments = dict(arguments or {})
        self.no_label = no_label
        self.time = time

    @override
    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        time = t + self.time_offset
        if self.time_scale != 1:
            time = time * self.time_scale
        if self.num_classes is not None and cond.get("label") is None:
            if not self.no_label:
                raise InputError(f'label is missing: this {type(self).__name__} has no embedding for "no label".')
            cond["label"] = torch.full_like(t, self.num_classes, dtype=torch.int64)
        named = {self.label if name == "label" else name: value for name, value in cond.items()}
        result = self.network(x_t, time, **self.arguments, **named)
        if isinstance(self.output, str) and not isinstance(result, Mapping):
            result = getattr(result, self.output)
        elif self.output is not None:
            result = result[self.output]
        output: Tensor = result
        return output
