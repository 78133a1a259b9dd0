"""The objective: a loss for each sample from one prediction of the network."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lit_ddpm import Denoiser, Objective, Prediction, UniformWeighting, Weighting


@dataclass
class HuberLoss(Objective):
    """A weight times twice the Huber loss of x0_hat: the squared error up to `delta`, and linear beyond.

    With `KLWeighting` and a large `delta` it is the KL; a small one limits the gradient of single pixels.

    Args:
        delta: The error at which the loss becomes linear, in units of x_0.
        weighting: The weight of each timestep; uniform if None.
    """

    delta: float = 1.0
    weighting: Weighting | None = None

    @override
    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        loss = 2 * F.huber_loss(pred.x0_hat, pred.x_0, reduction="none", delta=self.delta).flatten(1).mean(1)
        return (self.weighting or UniformWeighting())(denoiser, pred.t).to(loss) * loss
