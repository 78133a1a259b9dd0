"""Classifier-free guidance: label dropout in training, and a denoiser that extrapolates in sampling."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.device import to_device
from lit_ddpm.diffusion.denoiser import Denoiser, Estimate


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
        super().__init__(
            denoiser.network,
            denoiser.schedule,
            denoiser.parametrization,
            denoiser.variance,
            denoiser.clip,
            denoiser.time,
            denoiser.sigma_data,
        )
        name = type(denoiser.network).__name__
        if denoiser.num_classes is None:
            raise ValueError(f"guidance = {scale} needs a class-conditional network: num_classes of {name} is None.")
        if denoiser.no_label is None:
            raise ValueError(f'guidance = {scale} needs a network with "no label": no_label of {name} is False.')
        self.x0_mse = denoiser.x0_mse
        self.scale = scale
        self.unconditional: int = denoiser.no_label

    @override
    def estimate(self, x_t: Tensor, t: int | Tensor, **cond: Any) -> Estimate:
        t = self._timesteps(x_t, t)
        batch = len(x_t)
        doubled = {key: x.repeat(2, *[1] * (x.ndim - 1)) if isinstance(x, Tensor) else x for key, x in cond.items()}
        doubled["label"] = torch.cat([cond["label"], torch.full_like(cond["label"], self.unconditional)])
        x_t, t = torch.cat([x_t, x_t]), t.expand(batch).repeat(2)
        _, x0_hat, fraction = self._call(x_t, t, doubled)
        with_label, without_label = x0_hat.chunk(2)
        x0_hat = without_label + self.scale * (with_label - without_label)
        return Estimate(x0_hat.clamp(-1, 1) if self.clip else x0_hat, None if fraction is None else fraction[:batch])


@dataclass(frozen=True)
class LabelDropout:
    """Replaces training labels by "no label" at random, which classifier-free guidance needs."""

    probability: float  # of a replacement, in [0, 1)
    no_label: int | None  # the value of "no label"; None for a network without it

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not 0 <= self.probability < 1:
            raise ValueError(f"label_dropout = {self.probability} must be in [0, 1).")
        if self.probability > 0 and self.no_label is None:
            needed = 'a class-conditional network with "no label"'
            raise ValueError(f"label_dropout = {self.probability} needs {needed}: set num_classes.")

    def __call__(self, cond: dict[str, Any]) -> dict[str, Any]:
        """Returns the keyword arguments with some labels replaced; draws from torch's global CPU generator."""
        if self.probability == 0 or self.no_label is None:
            return cond
        label: Tensor = cond["label"]
        dropped = to_device(torch.rand(len(label)) < self.probability, label.device)
        return {**cond, "label": label.masked_fill(dropped, self.no_label)}
