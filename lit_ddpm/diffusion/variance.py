"""The variance of the reverse process ``p_theta(x_s|x_t)``."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lit_ddpm._internal.checks import check_one_of
from lit_ddpm._internal.interpolation import interpolate
from lit_ddpm.diffusion.gaussian import PosteriorCoefficients, posterior_coefficients
from lit_ddpm.diffusion.schedule import Schedule, check_timesteps

Variance = Literal["posterior", "beta", "analytic", "learned", "fixed_small", "fixed_large"]
"""The variance of ``p_theta(x_s|x_t)``:

- ``"posterior"``: sigma_q^2 of the true posterior, and ``"beta"``: that of the forward step (Ho et al. 2020, section
  3.2). Where s = 0 the true posterior has no variance, and both are beta.
- ``"analytic"``: ``sigma_q^2 + c_0^2 m_t`` with the x0-MSE m_t of the network on validation images. It is the best
  variance for a given mean (Bao et al. 2022, "Analytic-DPM"). A fit measures m_t and trains as with ``"posterior"``.
- ``"learned"``: between that of ``"fixed_small"`` and beta on a logarithmic scale, for each pixel (Nichol and Dhariwal
  2021, eq. 15).
- ``"fixed_small"`` and ``"fixed_large"``: posterior and beta as in the code of Ho et al., where the variance at t = 1
  is sigma_q^2 at t = 2."""

KNOTS = 64  # averages that `smooth_x0_mse` interpolates


def model_variance(
    c: PosteriorCoefficients, schedule: Schedule, t: int | Tensor, variance: Variance, x0_mse: Tensor | None = None
) -> Tensor:
    """Returns the variance of ``p_theta(x_s|x_t)`` for the posterior's coefficients `c`, float64 of the shape of t.

    It is sigma_q^2 for a learned variance, and for an analytic one without the x0-MSE ``[T]`` for t = 1..T.
    """
    check_one_of("p_theta", get_args(Variance), variance=variance)
    if variance in ("beta", "fixed_large"):
        var = c.beta
    elif variance == "analytic" and x0_mse is not None:
        var = c.var + c.c_0**2 * x0_mse[check_timesteps(t, 1, schedule.num_steps) - 1]
    else:
        var = c.var
    var = torch.where(var > 0, var, c.beta)
    if variance in ("fixed_small", "fixed_large"):
        last_step = (c.var == 0) & (torch.as_tensor(t) == 1)
        var = torch.where(last_step, torch.minimum(posterior_coefficients(schedule, 2).var, c.beta), var)
    return var


def smooth_x0_mse(squared_error: Tensor, visits: Tensor) -> Tensor:
    """Returns an estimate of the x0-MSE at t = 1..T, ``[T]``, from sums over the network calls at each t.

    Means over blocks of neighboring timesteps are interpolated on a logarithmic scale; t = 1 is a block by itself. With
    a call for every image and t, it is the mean at each t.

    Args:
        squared_error: The sum of ``|x0_hat - x_0|^2`` per dimension, ``[T]``.
        visits: The number of calls, ``[T]``.
    """
    num_kl = len(visits) - 1
    if bool((visits == visits[0]).all()):
        return squared_error / visits
    block = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.arange(num_kl) * min(KNOTS, num_kl) // num_kl])

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(int(block[-1]) + 1, dtype=torch.float64).index_add_(0, block, values.double())

    calls = sums(visits)
    t = torch.arange(1, num_kl + 2, dtype=torch.float64)
    known = calls > 0
    knots = (sums(visits * t) / calls)[known]
    logs = (sums(squared_error) / calls)[known].clamp(min=1e-30).log()
    return interpolate(t, knots, logs).exp()
