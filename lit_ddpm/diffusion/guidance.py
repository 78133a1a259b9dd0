"""Classifier-free guidance: label dropout in training, and a denoiser that extrapolates in sampling."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.device import to_device
from lit_ddpm.diffusion.denoiser import Denoiser, Estimate


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022).

    Args:
        scale: The scale in sampling, see `GuidedDenoiser`; 1 is without guidance.
        dropout: The probability of replacing a training label by "no label", in [0, 1); guidance needs it.
    """

    scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout = {self.dropout} of Guidance must be in [0, 1).")

    def check(self, denoiser: Denoiser) -> None:
        """Raises a ValueError if a setting is used and the network of a denoiser has no labels, or not "no label"."""
        if self.scale != 1:
            _no_label(denoiser, f"scale = {self.scale}")
        if self.dropout > 0:
            _no_label(denoiser, f"dropout = {self.dropout}")

    def drop(self, cond: dict[str, Any], no_label: int | None) -> dict[str, Any]:
        """Returns the keyword arguments with some labels replaced; draws from torch's global CPU generator."""
        if self.dropout == 0 or no_label is None:
            return cond
        label: Tensor = cond["label"]
        dropped = to_device(torch.rand(len(label)) < self.dropout, label.device)
        return {**cond, "label": label.masked_fill(dropped, no_label)}

    def guided(self, denoiser: Denoiser) -> Denoiser:
        """Returns the denoiser for sampling: with guidance, or itself at a scale of 1."""
        return denoiser if self.scale == 1 else GuidedDenoiser(denoiser, self.scale)


class GuidedDenoiser(Denoiser):
    """A denoiser with classifier-free guidance (Ho and Salimans 2022).

    The estimate is ``x0_hat(no label) + scale (x0_hat(label) - x0_hat(no label))``, before clipping. For an affine
    parametrization this equals guidance of the network's output. The network is that of `denoiser`; it is called on a
    batch of twice the size. The variance is that of the estimate with the label.

    Args:
        denoiser: The denoiser to guide; its network has ``num_classes`` and takes that number as "no label".
        scale: 1 is the conditional model, 0 the unconditional one; values above 1 extrapolate.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__(**denoiser.settings)
        self.scale = scale
        self.no_label = _no_label(denoiser, f"scale = {scale}")

    @override
    def estimate(self, x_t: Tensor, t: int | Tensor, **cond: Any) -> Estimate:
        t = self._timesteps(x_t, t)
        batch = len(x_t)
        doubled = {key: x.repeat(2, *[1] * (x.ndim - 1)) if isinstance(x, Tensor) else x for key, x in cond.items()}
        doubled["label"] = torch.cat([cond["label"], torch.full_like(cond["label"], self.no_label)])
        x_t, t = torch.cat([x_t, x_t]), t.expand(batch).repeat(2)
        _, x0_hat, position = self._call(x_t, t, doubled)
        with_label, without_label = x0_hat.chunk(2)
        x0_hat = without_label + self.scale * (with_label - without_label)
        return Estimate(x0_hat.clamp(-1, 1) if self.clip else x0_hat, None if position is None else position[:batch])


def _no_label(denoiser: Denoiser, setting: str) -> int:
    """Returns the label that means "no label"; raises a ValueError for a network without it."""
    spec, needs = denoiser.network_spec, f"{setting} of Guidance needs a"
    if spec.num_classes is None:
        raise InputError(f"{needs} class-conditional network: num_classes of {spec.name} is None.")
    if spec.no_label is None:
        raise InputError(f'{needs} network with "no label": no_label of {spec.name} is False.')
    return spec.no_label
