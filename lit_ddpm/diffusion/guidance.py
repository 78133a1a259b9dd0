"""Classifier-free guidance: a denoiser that exaggerates its label."""

from typing import Any

import torch
from torch import Tensor

from lit_ddpm.diffusion.denoiser import Denoiser, Estimate


class GuidedDenoiser(Denoiser):
    """A denoiser with classifier-free guidance (Ho and Salimans 2022): two estimates of x_0, one of them exaggerated.

    The estimate is ``x0_hat(no label) + scale (x0_hat(label) - x0_hat(no label))``, before clipping; on every affine
    parametrization it is the same as guiding the network's output. It shares the network of `denoiser` and makes two
    calls an image, as one batch.

    Args:
        denoiser: The denoiser to guide; its network has ``num_classes`` and takes that number as "no label".
        scale: 1 is the conditional model, 0 the unconditional one, and more than 1 exaggerates the label.

    Raises:
        ValueError: If the network has no labels.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        parts = (denoiser.network, denoiser.schedule, denoiser.parametrization, denoiser.variance, denoiser.clip)
        super().__init__(*parts)
        num_classes = getattr(denoiser.network, "num_classes", None)
        if num_classes is None:
            raise ValueError(
                f"guidance = {scale} needs a network with labels: num_classes of {type(denoiser.network).__name__} is "
                "None."
            )
        self.scale = scale
        self.no_label: int = num_classes

    def estimate(self, x_t: Tensor, t: int | Tensor, **cond: Any) -> Estimate:
        """See `Denoiser.estimate`; `cond` must have a ``label``, int64 ``[B]``. The variance is that with the label."""
        t = self._timesteps(x_t, t)
        batch = len(x_t)
        both = {key: x.repeat(2, *[1] * (x.ndim - 1)) if isinstance(x, Tensor) else x for key, x in cond.items()}
        both["label"] = torch.cat([cond["label"], torch.full_like(cond["label"], self.no_label)])
        x_t, t = torch.cat([x_t, x_t]), t.expand(batch).repeat(2)
        output, fraction = self._output(x_t, t, both)
        with_label, without = self._x0_hat(output, x_t, t).chunk(2)
        x0_hat = without + self.scale * (with_label - without)
        return Estimate(x0_hat.clamp(-1, 1) if self.clip else x0_hat, None if fraction is None else fraction[:batch])
