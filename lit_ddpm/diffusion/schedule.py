"""Noise schedules: float64 tables of the forward process.

The forward process adds Gaussian noise in T steps,

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I),    t = 1..T
    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)

with ``alpha_bar_t`` the product of ``1 - beta_i`` for i up to t, and ``alpha_bar_0 = 1``. A schedule is a plain object
on the CPU, never a buffer: its tables do not depend on the device or the precision of a network.
"""

import warnings
from abc import ABC, abstractmethod
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import Configurable
from lit_ddpm._internal.device import to_device
from lit_ddpm._internal.interpolation import interpolate

SNR_WARNING = 0.01  # above it, x_T shows a trace of the image, but sampling starts from pure noise


def check_timesteps(t: int | Tensor, low: int, high: int, name: str = "t", real: bool = False) -> Tensor:
    """Returns `t` as an int64 tensor on the CPU, after checking that it holds integers in `low`..`high`.

    Where `real` numbers are allowed, a floating-point tensor becomes float64.
    """
    if real and is_real(t):
        steps = t.detach().to("cpu", torch.float64)
        low = max(low, 1)  # t = 0 has no log SNR to interpolate
        inside = (steps >= low) & (steps <= high)  # in this form NaN is outside
        if not bool(inside.all()):
            raise ValueError(f"{name} = {float(steps[~inside][0]):g} must be in [{low}, {high}] of the schedule.")
        return steps
    if isinstance(t, Tensor):
        if t.dtype.is_floating_point or t.dtype.is_complex or t.dtype == torch.bool:
            raise TypeError(f"{name} must contain integers, such as a LongTensor; its dtype is {t.dtype}.")
        steps = t.detach().to("cpu", torch.int64)
    elif isinstance(t, int) and not isinstance(t, bool):
        steps = torch.tensor(t)
    else:
        raise TypeError(f"{name} must be an int or a LongTensor, not {type(t).__name__}.")
    if steps.numel() and not (low <= int(steps.min()) and int(steps.max()) <= high):
        outside = int(steps.min()) if int(steps.min()) < low else int(steps.max())
        raise ValueError(f"{name} = {outside} lies outside the schedule: {name} must be in {low}..{high}.")
    return steps


def is_real(t: int | Tensor) -> TypeGuard[Tensor]:
    """Whether `t` is a tensor of real numbers: points between the timesteps of a schedule, or on them."""
    return isinstance(t, Tensor) and t.dtype.is_floating_point


def log_snr_of(log_alpha_bar: Tensor) -> Tensor:
    """Returns log SNR for ``log(alpha_bar)``; minus infinity where alpha_bar is 0."""
    return log_alpha_bar - log_alpha_bar.expm1().neg().log()


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshapes a coefficient, a scalar or one value a sample ``[B]``, to multiply `x` ``[B, ...]`` on its device."""
    coefficient = to_device(coefficient.to(torch.promote_types(x.dtype, torch.float32)), x.device)
    ones = (1,) * (x.ndim - coefficient.ndim) if coefficient.ndim else ()
    return coefficient.reshape(coefficient.shape + ones)


class Schedule(Configurable, ABC):
    """The forward process as float64 tables indexed by the timestep.

    A subclass implements `betas`. It is a dataclass as those of `schedules`, or sets its own settings before it calls
    ``super().__init__``. Every method takes an int or an integer tensor of any shape and returns float64 of that shape.
    Those of the marginal ``q(x_t|x_0)`` also take real numbers in [1, T], a floating-point tensor; between timesteps
    log SNR is interpolated linearly.

    Args:
        num_steps: The number of steps T.
        zero_terminal_snr: Rescale the schedule so that ``alpha_bar(T) = 0`` exactly and ``alpha_bar(1)`` is unchanged
            (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1).
    """

    num_steps: int
    zero_terminal_snr: bool

    def __init__(self, num_steps: int, zero_terminal_snr: bool = False) -> None:
        self.num_steps = num_steps
        self.zero_terminal_snr = zero_terminal_snr
        self.__post_init__()

    def __post_init__(self) -> None:
        """Builds and checks the table of log(alpha_bar), from which all others follow."""
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 2:
            raise InputError(f"num_steps = {self.num_steps!r}: a schedule needs an integer of at least 2.")
        betas = self.betas().detach().to("cpu", torch.float64)
        if betas.shape != (self.num_steps,):
            raise InputError(f"{self}: betas() must have shape ({self.num_steps},), not {tuple(betas.shape)}.")
        outside = ~((betas > 0) & (betas <= 1))  # in this form NaN counts as outside
        if outside.any():
            t = int(outside.nonzero()[0]) + 1
            raise InputError(f"{self}: beta({t}) = {float(betas[t - 1]):g}, but every beta must be in (0, 1].")
        # Sums of logarithms keep 1 - alpha_bar and the KL weight exact where products of alphas would not.
        log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])
        if self.zero_terminal_snr:
            root = torch.exp(log_alpha_bar / 2)
            scale = root[1] / (root[1] - root[-1])
            log_alpha_bar[1:] = 2 * torch.log((root[1:] - root[-1]) * scale)
        self._log_alpha_bar = log_alpha_bar
        self._log_snr = log_snr_of(log_alpha_bar[1:])
        if self.snr(self.num_steps) > SNR_WARNING:
            warnings.warn(
                f"{self}: SNR(T) = {float(self.snr(self.num_steps)):.3g} is above {SNR_WARNING}, so x_T still shows "
                "the image but sampling starts from pure noise; use more noise or zero_terminal_snr=True.",
                stacklevel=3,
            )

    @abstractmethod
    def betas(self) -> Tensor:
        """Returns the step variances beta_1..beta_T in (0, 1], float64 ``[T]``, before any rescaling."""

    def log_alpha_bar(self, t: int | Tensor) -> Tensor:
        """Returns ``log(alpha_bar(t))`` for t in 0..T; minus infinity where alpha_bar is 0."""
        if is_real(t):
            return logsigmoid(self.log_snr(t))
        return self._log_alpha_bar[check_timesteps(t, 0, self.num_steps)]

    def alpha_bar(self, t: int | Tensor) -> Tensor:
        """Returns the product of alpha up to t, for t in 0..T: the variance of the signal in ``q(x_t|x_0)``."""
        return torch.exp(self.log_alpha_bar(t))

    def one_minus_alpha_bar(self, t: int | Tensor) -> Tensor:
        """Returns the variance of the noise in ``q(x_t|x_0)`` for t in 0..T, without cancellation at small t."""
        return -torch.expm1(self.log_alpha_bar(t))

    def beta(self, t: int | Tensor) -> Tensor:
        """Returns the variance of ``q(x_t|x_{t-1})`` for t in 1..T."""
        t = check_timesteps(t, 1, self.num_steps)
        return -torch.expm1(self.log_alpha_bar(t) - self.log_alpha_bar(t - 1))

    def alpha(self, t: int | Tensor) -> Tensor:
        """Returns ``1 - beta(t)`` for t in 1..T."""
        t = check_timesteps(t, 1, self.num_steps)
        return torch.exp(self.log_alpha_bar(t) - self.log_alpha_bar(t - 1))

    def snr(self, t: int | Tensor) -> Tensor:
        """Returns the signal-to-noise ratio ``alpha_bar / (1 - alpha_bar)`` for t in 1..T; it decreases strictly."""
        t = check_timesteps(t, 1, self.num_steps, real=True)
        return self.alpha_bar(t) / self.one_minus_alpha_bar(t)

    def log_snr(self, t: int | Tensor) -> Tensor:
        """Returns ``log SNR(t)`` for t in 1..T; minus infinity where alpha_bar is 0."""
        t = check_timesteps(t, 1, self.num_steps, real=True)
        if not is_real(t):
            return self._log_snr[t - 1]
        left = t.long().clamp(max=self.num_steps - 1)
        return torch.lerp(self._log_snr[left - 1], self._log_snr[left], t - left)

    def snr_slope(self, t: Tensor) -> Tensor:
        """Returns the derivative of SNR at real `t` in [1, T]."""
        left = check_timesteps(t, 1, self.num_steps, real=True).long().clamp(max=self.num_steps - 1)
        return self.snr(t) * (self._log_snr[left] - self._log_snr[left - 1])

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Returns the real t in [1, T] with a given log SNR, the inverse of `log_snr`; float64 of its shape.

        Raises:
            ValueError: If a value is outside log SNR(1) to log SNR(T).
        """
        table = -self._log_snr
        value = -log_snr.detach().to("cpu", torch.float64)
        slack = 1e-5 * (1 + value.abs())  # float32 rounding
        if bool(((value < table[0] - slack) | (value > table[-1] + slack)).any()):
            raise InputError(
                f"log SNR = {float(log_snr.min()):g} to {float(log_snr.max()):g} is outside {self}, whose range is "
                f"{-float(table[0]):g} to {-float(table[-1]):g}."
            )
        return interpolate(value, table, torch.arange(1, self.num_steps + 1, dtype=torch.float64))
