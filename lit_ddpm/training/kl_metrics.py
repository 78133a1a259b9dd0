"""Both forms of the KL of a training batch."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_ddpm._internal.device import to_device
from lit_ddpm.diffusion.denoiser import Denoiser, Prediction
from lit_ddpm.diffusion.objective import kl_forms
from lit_ddpm.diffusion.schedule import expand_like


@dataclass(frozen=True)
class KLMetrics:
    """Both forms of the KL of the samples of a training batch with t >= 2.

    In continuous time it is the KL of a step of length 1 that ends at t.
    """

    t: Tensor  # their timesteps, int64 [N] on the CPU; those of continuous time are rounded
    kl: Tensor  # the full form, nats per dimension, [N]
    values: dict[str, Tensor]  # means for the logs, and the largest relative difference of the forms, train/form_gap


@torch.no_grad()
def kl_metrics(denoiser: Denoiser, pred: Prediction, weight: Tensor) -> KLMetrics | None:
    """Computes both forms of the KL from a prediction and the weights of its timesteps; None if all have t = 1."""
    has_kl = pred.t >= 2
    if not bool(has_kl.any()):
        return None
    # At t = 1 both forms are computed at t = 2 and then left out: a selection of images would copy them.
    forms = torch.stack(kl_forms(denoiser, replace(pred, t=pred.t.clamp(min=2))))
    rows = has_kl.nonzero().flatten()
    kl, kl_from_x0_mse, x0_mse = forms[:, to_device(rows, forms.device)]
    weight = expand_like(weight[rows], kl)
    values = {"train/kl": (weight * kl).mean(), "train/x0_mse": (weight * x0_mse).mean()}
    if denoiser.variance != "learned":  # the KL of a learned variance is not a weighted x0-MSE
        values["train/kl_from_x0_mse"] = (weight * kl_from_x0_mse).mean()
        values["train/form_gap"] = ((kl - kl_from_x0_mse).abs() / kl.clamp(min=1e-30)).max()
    return KLMetrics(pred.t[rows].round().long(), kl, values)
