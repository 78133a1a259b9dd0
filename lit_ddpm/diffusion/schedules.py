"""The noise schedules of the literature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm.diffusion.schedule import Schedule


@dataclass(eq=False)
class LinearSchedule(Schedule):
    """Betas that increase linearly, scaled by ``1000 / num_steps`` (Ho et al. 2020, section 4).

    The scaling keeps the total noise of the 1,000-step schedule for any number of steps. With the default ends, fewer
    than 20 steps would need a beta above 1.

    Args:
        beta_start: The first beta of the 1,000-step schedule.
        beta_end: The last beta of the 1,000-step schedule.
    """

    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False

    @override
    def betas(self) -> Tensor:
        line = torch.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=torch.float64)
        return line * (1000 / self.num_steps)


def _betas_from_alpha_bar(alpha_bar: Tensor, max_beta: float) -> Tensor:
    """Returns the betas of a curve of alpha_bar over t = 0..T, capped so that the last one leaves some signal."""
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


@dataclass(eq=False)
class CosineSchedule(Schedule):
    """alpha_bar as a squared cosine (Nichol and Dhariwal 2021, eq. 17).

    ``alpha_bar_t`` is proportional to ``cos((t/T + s) / (1 + s) pi/2)^2``.

    Args:
        offset: The paper's s, which keeps the first betas from vanishing.
        max_beta: The cap on every beta.
    """

    num_steps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999
    zero_terminal_snr: bool = False

    @override
    def betas(self) -> Tensor:
        time = torch.linspace(0, 1, self.num_steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return _betas_from_alpha_bar(alpha_bar, self.max_beta)


@dataclass(eq=False)
class SigmoidSchedule(Schedule):
    """alpha_bar as a sigmoid that falls in time (Jabri et al. 2022; Chen 2023, section 2).

    Args:
        start: The argument of the sigmoid at t = 0.
        end: The argument of the sigmoid at t = T.
        temperature: The width of the sigmoid; a smaller one is steeper in the middle.
        max_beta: The cap on every beta.
    """

    num_steps: int = 1000
    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0
    max_beta: float = 0.999
    zero_terminal_snr: bool = False

    @override
    def __post_init__(self) -> None:
        if not (self.start < self.end and self.temperature > 0):
            raise InputError(f"{self}: start must be less than end, and temperature positive.")
        super().__post_init__()

    @override
    def betas(self) -> Tensor:
        axis = torch.linspace(self.start, self.end, self.num_steps + 1, dtype=torch.float64)
        curve = torch.sigmoid(-axis / self.temperature)
        return _betas_from_alpha_bar((curve - curve[-1]) / (curve[0] - curve[-1]), self.max_beta)


@dataclass(eq=False)
class LogSNRSchedule(Schedule):
    """log SNR as a line from `log_snr_start` at t = 1 down to `log_snr_end` at t = T (Kingma et al. 2021, VDM).

    Args:
        log_snr_start: ``log SNR(1)``. The last noise that is removed has a standard deviation of about
            ``exp(-log_snr_start / 2)``; compare it with half the distance of two pixel levels, ``1 / (levels - 1)``.
        log_snr_end: ``log SNR(T)``.
    """

    num_steps: int = 1000
    log_snr_start: float = 9.0
    log_snr_end: float = -6.0
    zero_terminal_snr: bool = False

    @override
    def __post_init__(self) -> None:
        if not self.log_snr_end < self.log_snr_start:
            raise InputError(f"{self}: log_snr_end must be less than log_snr_start.")
        super().__post_init__()

    @override
    def betas(self) -> Tensor:
        log_snr = torch.linspace(self.log_snr_start, self.log_snr_end, self.num_steps, dtype=torch.float64)
        log_alpha_bar = logsigmoid(log_snr)
        return -torch.expm1(torch.diff(log_alpha_bar, prepend=torch.zeros(1, dtype=torch.float64)))


@dataclass(eq=False)
class BetaSchedule(Schedule):
    """A schedule of T given betas."""

    num_steps: int = field(init=False)
    values: Sequence[float] | Tensor = field(repr=False)
    zero_terminal_snr: bool = field(default=False, repr=False)

    @override
    def __post_init__(self) -> None:
        self.num_steps = len(self.values)
        super().__post_init__()

    @override
    def betas(self) -> Tensor:
        return torch.as_tensor(self.values, dtype=torch.float64)
