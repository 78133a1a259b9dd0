"""Small models whose answers are known, and a clean environment."""

import os
import warnings

import pytest
import torch
from torch import Tensor, nn

from lit_ddpm import (
    BetaSchedule,
    CosineSchedule,
    Denoiser,
    EpsParametrization,
    LinearSchedule,
    LogSNRSchedule,
    MeanParametrization,
    Schedule,
    SigmoidSchedule,
    VParametrization,
    X0Parametrization,
)

# Two workers share the cores; and a process that forks must have no threads of OpenMP, for which its child would wait.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

PARAMETRIZATIONS = [X0Parametrization(), EpsParametrization(), VParametrization(), MeanParametrization()]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SCHEDULES: list[Schedule] = [
        LinearSchedule(),
        LinearSchedule(num_steps=100),
        CosineSchedule(num_steps=200),
        SigmoidSchedule(num_steps=200),
        LogSNRSchedule(min=-6, max=8, num_steps=256),
        BetaSchedule([0.1, 0.2, 0.4, 0.05, 0.9, 0.99]),
        LinearSchedule(num_steps=300, zero_terminal_snr=True),
    ]
# Where SNR(T) is zero, eps and mean are refused; tests/test_parametrization.py shows that.
COMBINATIONS = [
    pytest.param(schedule, parametrization, id=f"{type(parametrization).__name__}-{schedule}")
    for schedule in SCHEDULES
    for parametrization in PARAMETRIZATIONS
    if not (parametrization.needs_signal and schedule.zero_terminal_snr)
]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    """Each test in a directory of its own, as one process of one, without the seed of another test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    forget_processes()
    yield
    forget_processes()  # before the next test: fixtures of a module are made ahead of this one


def forget_processes() -> None:
    """Removes what a strategy left: with a LOCAL_RANK in it, the environment promises processes that nobody starts."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED")
    for name in [n for n in os.environ if n in names or "MASTER_" in n]:
        del os.environ[name]


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request) -> Schedule:
    return request.param


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


class TinyNetwork(nn.Module):
    """A network with real weights that costs nothing: a convolution and an embedding of t."""

    def __init__(self, channels: int = 1, num_steps: int = 1000) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Embedding(num_steps + 1, channels)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.conv(x_t) + self.time(t)[:, :, None, None])


def oracle(schedule: Schedule, tau2: float = 0.25, mean: float = 0.0, **kwargs) -> Denoiser:
    return Denoiser(GaussianOracle(schedule, tau2, mean), schedule, X0Parametrization(), **kwargs)
