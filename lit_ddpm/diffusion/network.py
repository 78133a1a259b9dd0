"""Networks: what a denoiser and `DDPM` read from them, and the time that they get."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from lit_ddpm._internal.checks import check_one_of
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


class Network(Protocol):
    """The attributes of a network that this package reads. All are optional."""

    in_channels: int
    """Channels of x_t."""

    out_channels: int
    """Channels of the output."""

    dims: int
    """Dimensions next to the channels: 1 for sequences, 2 for images, 3 for volumes."""

    num_classes: int | None
    """The number of classes of the keyword argument ``label``, int64 ``[B]``; None without labels."""

    no_label: bool
    """Whether the label `num_classes` means "no label"; it does by default."""

    cond_channels: int | None
    """Channels C' of the keyword argument ``cond``, ``[B, C', ...]``; None without conditions."""

    time: NetworkTime
    """What the network gets as t, see `NetworkTime`; ``"t"`` by default."""


@dataclass(frozen=True)
class NetworkSpec:
    """The attributes of a `Network` as a denoiser read them, with defaults for those that are absent."""

    name: str  # its class
    in_channels: int | None
    out_channels: int | None
    dims: int | None
    num_classes: int | None
    no_label: int | None  # the label that means "no label"; None for a network without it
    cond_channels: int | None
    time: NetworkTime

    @classmethod
    def of(cls, network: nn.Module) -> "NetworkSpec":
        """Reads a network.

        Raises:
            ValueError: If its time is not a `NetworkTime`.
        """
        name, num_classes = type(network).__name__, getattr(network, "num_classes", None)
        time = getattr(network, "time", "t")
        time = time if isinstance(time, str) else "t"  # a layer of that name
        check_one_of(name, get_args(NetworkTime), time=time)
        return cls(
            name=name,
            in_channels=getattr(network, "in_channels", None),
            out_channels=getattr(network, "out_channels", None),
            dims=getattr(network, "dims", None),
            num_classes=num_classes,
            no_label=num_classes if getattr(network, "no_label", True) else None,
            cond_channels=getattr(network, "cond_channels", None),
            time=time,  # type: ignore[arg-type]  # checked above
        )
