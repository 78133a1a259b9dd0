"""Networks: what a denoiser and `DDPM` read from them, and how they are told the time."""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_ddpm.diffusion.schedule import Schedule

NetworkTime = Literal["t", "log_snr"]
"""The time that a network gets, one value a sample:

- ``"t"``: the timestep, int64 in 1..T. The network belongs to the schedule that it was trained with.
- ``"log_snr"``: ``1000 sigmoid(-log SNR(t) / 4)``, float32 in [0, 1000]. It is a function of the noise level alone, so
  the network can be measured and sampled with any number of steps, and on any schedule within the range of log SNR that
  it was trained on."""


def network_time(schedule: Schedule, t: Tensor, time: NetworkTime) -> Tensor:
    """Returns what a network gets for timesteps `t`, see `NetworkTime`; of the shape of `t`, on the CPU."""
    return t if time == "t" else (1000 * torch.sigmoid(-schedule.log_snr(t) / 4)).float()


def is_per_image(value: Any, num_images: int) -> bool:
    """Returns whether a keyword argument of a network has an entry for each image."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == num_images


@runtime_checkable
class ImageNetwork(Protocol):
    """A network that states its channels, which `DDPM` compares with those of the data."""

    in_channels: int
    out_channels: int


@runtime_checkable
class ClassConditionalNetwork(Protocol):
    """A network with the keyword argument ``label``, int64 ``[B]``; the value ``num_classes`` means "no label".

    A network without such a value has an attribute ``no_label`` that is False.
    """

    num_classes: int | None


@runtime_checkable
class ConditionalNetwork(Protocol):
    """A network with the keyword argument ``cond``, ``[B, cond_channels, ...]``."""

    cond_channels: int | None


@runtime_checkable
class SpatialNetwork(Protocol):
    """A network for a fixed number of dimensions next to the channels: 1 for sequences, 2 for images, 3 for volumes."""

    dims: int
