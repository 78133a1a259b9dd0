"""Schedules, parametrizations, and small networks with known outputs."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from lit_ddpm import (
    BetaSchedule,
    CosineSchedule,
    Denoiser,
    EDMParametrization,
    EpsParametrization,
    LinearSchedule,
    LogSNRSchedule,
    MeanParametrization,
    Schedule,
    SigmoidSchedule,
    VParametrization,
    X0Parametrization,
)

PARAMETRIZATIONS = [
    X0Parametrization(),
    EpsParametrization(),
    VParametrization(),
    MeanParametrization(),
    EDMParametrization(),
]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SCHEDULES: list[Schedule] = [
        LinearSchedule(),
        LinearSchedule(num_steps=100),
        CosineSchedule(num_steps=200),
        SigmoidSchedule(num_steps=200),
        LogSNRSchedule(num_steps=256, log_snr_start=8, log_snr_end=-6),
        BetaSchedule([0.1, 0.2, 0.4, 0.05, 0.9, 0.99]),
        LinearSchedule(num_steps=300, zero_terminal_snr=True),
    ]
# Eps and mean are refused where SNR(T) is zero; tests/diffusion/test_parametrization.py covers that.
COMBINATIONS = [
    pytest.param(schedule, parametrization, id=f"{type(parametrization).__name__}-{schedule}")
    for schedule in SCHEDULES
    for parametrization in PARAMETRIZATIONS
    if not (parametrization.needs_signal and schedule.zero_terminal_snr)
]


class GaussianOracle(nn.Module):
    """The ideal estimate of x_0 when x_0 ~ N(mean, tau2), as a network for X0Parametrization."""

    def __init__(self, schedule: Schedule, tau2: float, mean: float = 0.0) -> None:
        super().__init__()
        self.schedule, self.tau2, self.mean = schedule, tau2, mean
        self.calls: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls.append(len(x_t))
        bar = self.schedule.alpha_bar(t).reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t)
        gain = self.tau2 * bar.sqrt() / (self.tau2 * bar + 1 - bar)
        return self.mean + gain * (x_t - bar.sqrt() * self.mean)


def oracle(schedule: Schedule, tau2: float = 0.25, mean: float = 0.0, **kwargs) -> Denoiser:
    return Denoiser(GaussianOracle(schedule, tau2, mean), schedule, X0Parametrization(), **kwargs)


class TinyNetwork(nn.Module):
    """A network with trainable weights and a negligible cost: a convolution and an embedding of t."""

    def __init__(self, channels: int = 1, num_steps: int = 1000) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Embedding(num_steps + 1, channels)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.conv(x_t) + self.time(t)[:, :, None, None])


def tiny_denoiser(num_steps: int = 40, **kwargs) -> Denoiser:
    torch.manual_seed(3)
    return Denoiser(TinyNetwork(num_steps=num_steps), LinearSchedule(num_steps), VParametrization(), **kwargs)


class LabelledNetwork(nn.Module):
    """A network whose output is affine in x_t with an offset for each label."""

    def __init__(self, num_classes=3, channels=1):
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes + 1, channels)
        self.calls = 0
        self.seen = []

    def forward(self, x_t, t, label=None):
        self.calls += 1
        self.seen.append(label)
        label = torch.full_like(t, self.num_classes) if label is None else label
        return 0.1 * x_t + self.embedding(label)[:, :, None, None]


class VarianceNetwork(nn.Module):
    """A network for variance="learned": its second output is one number for each timestep."""

    def __init__(self, num_steps=50, channels=1, num_classes=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.position = nn.Embedding(num_steps + 1, channels)
        self.num_classes = num_classes

    def forward(self, x_t, t, label=None):
        position = self.position(t)[:, :, None, None].expand_as(x_t)
        return torch.cat([torch.tanh(self.conv(x_t)), position], dim=1)


def learned_variance_denoiser(schedule: Schedule | None = None, **kwargs) -> Denoiser:
    torch.manual_seed(0)
    schedule = schedule or LinearSchedule(50)
    network = VarianceNetwork(schedule.num_steps, **kwargs)
    return Denoiser(network, schedule, VParametrization(), variance="learned").double()


def in_float64(scheduler, schedule: Schedule):
    """The scheduler of diffusers with the tables of a schedule, which have the same values in float64."""
    t = torch.arange(1, schedule.num_steps + 1)
    scheduler.betas, scheduler.alphas = schedule.beta(t), schedule.alpha(t)
    scheduler.alphas_cumprod = schedule.alpha_bar(t)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def continuous(network: nn.Module) -> nn.Module:
    """Gives a network log SNR instead of the timestep."""
    network.time = "log_snr"
    return network
