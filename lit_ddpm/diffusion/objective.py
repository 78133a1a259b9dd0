r"""What training minimises: one value a sample, in nats (or squared error) per dimension, one term at one t.

The lecture's equivalence for t >= 2, with the variance of p_theta equal to :math:`\sigma_q^2`:

.. math::
    KL(q(x_{t-1}|x_t,x_0) \,\|\, p_\theta(x_{t-1}|x_t)) = \frac{|\mu_\theta - \mu_q|^2}{2 \sigma_q^2}
        = w_t |\hat x_0 - x_0|^2, \qquad
    w_t = \frac{c_0^2}{2 \sigma_q^2} = \tfrac{1}{2} (SNR(t-1) - SNR(t)).

`PosteriorKL` computes the left side from means and variances, `X0MSE` the right side; neither calls the other.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from lit_ddpm._internal.config import Configurable
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser, Prediction
from lit_ddpm.diffusion.gaussian import gaussian_kl, q_posterior, to_float64
from lit_ddpm.diffusion.schedule import expand_like
from lit_ddpm.diffusion.weighting import UniformWeighting, Weighting, kl_constant, kl_weight


class Objective(Configurable, ABC):
    """A loss for each sample of a prediction."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        """The loss of each sample, ``[B]``, averaged over its dimensions and not over the batch."""

    def check(self, denoiser: Denoiser) -> None:
        """Raises a ValueError if this objective cannot train the denoiser; a `DDPM` asks once, when it is made."""


def _check_variance_is_given(objective: Objective, denoiser: Denoiser) -> None:
    if denoiser.variance == "learned":
        raise ValueError(
            f"variance = 'learned' is not trained by {type(objective).__name__}: use PosteriorKL or HybridObjective."
        )


class PosteriorKL(Objective):
    """The full form: the KL between the two Gaussians at t >= 2, and the decoder's likelihood at t = 1.

    The means are taken in float64. Their difference is tiny beside their size, and this is what makes the full form
    exact without ever using that their x_t parts cancel.

    Args:
        decoder: The likelihood at t = 1, where the true posterior has no variance and there is no KL. A `DDPM` fills in
            its own decoder.
    """

    def __init__(self, decoder: Decoder | None = None) -> None:
        self.decoder = decoder

    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        """See `Objective.__call__`; nats per dimension.

        Raises:
            ValueError: If a sample has t = 1 and there is no decoder.
        """
        x_0, x_t, x0_hat = (to_float64(x) for x in (pred.x_0, pred.x_t, pred.x0_hat))
        first = pred.t == 1
        q = q_posterior(denoiser.schedule, x_t, x_0, pred.t.clamp(min=2))
        p = denoiser.p_given_x0_hat(x_t, x0_hat, pred.t.clamp(min=2), fraction=pred.fraction)
        loss = gaussian_kl(q, p).flatten(1).mean(1)
        if bool(first.any()):
            if self.decoder is None:
                raise ValueError("PosteriorKL has no KL at t = 1: give it a decoder, such as DiscretizedGaussian(256).")
            rows = first.nonzero().flatten().to(x_0.device)
            fraction = pred.fraction[rows] if pred.fraction is not None else None
            p = denoiser.p_given_x0_hat(x_t[rows], x0_hat[rows], 1, fraction=fraction)
            nll = -self.decoder.log_prob(x_0[rows], p)
            loss = loss.index_copy(0, rows, nll.flatten(1).mean(1))
        return loss


class X0MSE(Objective):
    """The simplified form: a weight on the mean squared error of the estimate of x_0.

    Args:
        weighting: The weight for each t; uniform if None.
    """

    def __init__(self, weighting: Weighting | None = None) -> None:
        self.weighting = weighting if weighting is not None else UniformWeighting()

    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        """See `Objective.__call__`; squared error per dimension, times the weight."""
        error = (to_float64(pred.x0_hat) - to_float64(pred.x_0)) ** 2
        return self.weighting(denoiser, pred.t).to(error) * error.flatten(1).mean(1)

    def check(self, denoiser: Denoiser) -> None:
        """See `Objective.check`."""
        _check_variance_is_given(self, denoiser)


class PredictionMSE(Objective):
    """The mean squared error of the network's own output; with `EpsParametrization`, the L_simple of Ho et al. 2020."""

    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        """See `Objective.__call__`; squared error of the output per dimension."""
        target = denoiser.parametrization.target(denoiser.schedule, pred.x_0, pred.eps, pred.t)
        return ((pred.output - target) ** 2).flatten(1).mean(1)

    def check(self, denoiser: Denoiser) -> None:
        """See `Objective.check`."""
        _check_variance_is_given(self, denoiser)


class HybridObjective(Objective):
    """A simple loss that trains the mean, and a little of the whole KL, which trains the variance alone.

    ``simple + weight T KL``, with the gradient of the KL stopped at x0_hat (Nichol and Dhariwal 2021, eq. 16).

    Args:
        simple: The loss of the mean; `PredictionMSE` if None.
        weight: The weight of the bound's KL, nats per dimension summed over t.
        decoder: See `PosteriorKL`.

    Raises:
        ValueError: If the weight is not positive; in `check`, if the denoiser's variance is not learned.
    """

    def __init__(self, simple: Objective | None = None, weight: float = 0.001, decoder: Decoder | None = None) -> None:
        if not weight > 0:
            raise ValueError(f"weight = {weight} of HybridObjective must be positive.")
        self.simple = simple if simple is not None else PredictionMSE()
        self.weight = weight
        self.decoder = decoder

    def __call__(self, denoiser: Denoiser, pred: Prediction) -> Tensor:
        """See `Objective.__call__`."""
        self.check(denoiser)
        kl = PosteriorKL(self.decoder)(denoiser, replace(pred, x0_hat=pred.x0_hat.detach()))
        simple = self.simple(denoiser, pred)
        return simple + self.weight * denoiser.schedule.num_steps * kl.to(torch.promote_types(simple.dtype, kl.dtype))

    def check(self, denoiser: Denoiser) -> None:
        """See `Objective.check`."""
        if denoiser.variance != "learned":
            raise ValueError(f"HybridObjective trains a variance: set variance to learned, not {denoiser.variance!r}.")


@torch.no_grad()
def weight_on_x0_mse(objective: Objective, denoiser: Denoiser) -> Tensor:
    """What an objective weighs the x0-MSE with, found out by a small error of x0_hat: ``[T - 1]`` for t = 2..T.

    It is exact for every objective that is a weight times the x0-MSE, whatever it is written in. For others it is what
    they do to an error of a hundredth.
    """
    t = torch.arange(2, denoiser.schedule.num_steps + 1)
    error = torch.full((len(t), 1, 1, 1), 0.01, dtype=torch.float64)
    _, scale = denoiser.parametrization.coefficients(denoiser.schedule, t)
    nothing = torch.zeros_like(error)

    def value(x0_hat: Tensor) -> Tensor:
        output = x0_hat / expand_like(scale, x0_hat)
        pred = Prediction(x_0=nothing, x_t=nothing, t=t, eps=nothing, output=output, x0_hat=x0_hat)
        return objective(denoiser, pred)

    return (value(error) - value(nothing)) / 0.01**2


def kl_forms(denoiser: Denoiser, pred: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """The KL of each sample by the full form and by the simplified one, and the x0-MSE, all ``[B]``, for t >= 2.

    The first two are equal but for rounding; the second is ``w_t`` times the third, plus `kl_constant`.
    """
    x0_mse = X0MSE()(denoiser, pred)
    w_t = kl_weight(denoiser.schedule, pred.t, denoiser.variance)
    constant = kl_constant(denoiser.schedule, pred.t, denoiser.variance)
    return PosteriorKL()(denoiser, pred), w_t.to(x0_mse) * x0_mse + constant.to(x0_mse), x0_mse
