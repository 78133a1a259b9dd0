"""What networks get as the time, and models of any number of steps."""

import math

import pytest
import torch
from helpers import GaussianOracle, TinyNetwork, continuous
from torch import nn

from lit_ddpm import (
    AncestralSampler,
    CosineSchedule,
    Denoiser,
    GaussianDecoder,
    GuidedDenoiser,
    LinearSchedule,
    LogSNRSchedule,
    UNet,
    VParametrization,
    X0Parametrization,
    variational_bound,
)
from lit_ddpm.diffusion.network import NetworkSpec, network_time
from lit_ddpm.nn import DiffusersUNet

TAU2 = 0.25


class LogSNROracle(nn.Module):
    """The ideal estimate of x_0 ~ N(0, TAU2) for VP noise, from the time of a log-SNR network alone."""

    time = "log_snr"

    def forward(self, x_t, time):
        log_snr = -4 * torch.logit(time.double() / 1000)
        bar = torch.sigmoid(log_snr).reshape(-1, *[1] * (x_t.ndim - 1))
        return (TAU2 * bar.sqrt() / (TAU2 * bar + 1 - bar) * x_t).to(x_t)


def log_snr_oracle(schedule):
    return Denoiser(LogSNROracle(), schedule, X0Parametrization())


class Recorder(nn.Module):
    num_classes = 3

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x_t, t, label=None):
        self.times.append(t)
        return torch.zeros_like(x_t)


def test_what_a_network_gets():
    schedule, network, x = LogSNRSchedule(11, log_snr_start=8.0, log_snr_end=-6.0), Recorder(), torch.zeros(2, 1, 2, 2)
    Denoiser(network, schedule, VParametrization())(x, torch.tensor([1, 11]))
    Denoiser(continuous(network), schedule, VParametrization())(x, torch.tensor([1, 11]))
    steps, times = network.times
    assert steps.tolist() == [1, 11]
    assert steps.dtype == torch.int64
    assert times.dtype == torch.float32
    assert times.tolist() == pytest.approx([1000 / (1 + math.exp(2)), 1000 / (1 + math.exp(-1.5))], rel=1e-6)
    guided = GuidedDenoiser(Denoiser(network, schedule, VParametrization()), 2.0)
    guided(x, 11, label=torch.tensor([0, 1]))
    assert network.times[-1].tolist() == pytest.approx([float(times[1])] * 4)


def test_the_time_is_bounded_and_a_function_of_the_noise_alone():
    zero = LinearSchedule(20, zero_terminal_snr=True)
    assert float(network_time(zero, torch.tensor(20), "log_snr")) == 1000
    for schedule in (LinearSchedule(500), CosineSchedule(200), LogSNRSchedule(50, log_snr_start=30.0)):
        t = torch.arange(1, schedule.num_steps + 1)
        time = network_time(schedule, t, "log_snr")
        assert bool(((time > 0) & (time < 1000)).all())
        assert bool((time.diff() > 0).all())
        torch.testing.assert_close(time.double(), 1000 / (1 + schedule.snr(t) ** 0.25), rtol=1e-5, atol=0)


def test_a_log_snr_network_has_one_bound_at_every_number_of_steps():
    """The bound falls to its limit as T grows, and the report of few steps estimates that limit."""
    x_0 = torch.randn(200, 1, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * math.sqrt(TAU2)
    totals, estimates = [], []
    for num_steps in (32, 128, 512):
        schedule = LogSNRSchedule(num_steps, log_snr_start=6.0)
        denoiser = log_snr_oracle(schedule)
        stepwise = Denoiser(GaussianOracle(schedule, TAU2), schedule, X0Parametrization())
        bound = variational_bound(denoiser, x_0, GaussianDecoder())
        expected = variational_bound(stepwise, x_0, GaussianDecoder())
        torch.testing.assert_close(bound.total, expected.total, rtol=1e-5, atol=1e-5)
        report = bound.report()
        totals.append(report.terms["total"].value)
        estimates.append(sum(report.infinite_steps) / 2)
    assert totals[0] > totals[1] > totals[2]
    integral = 0.5 * math.log((1 + TAU2 * math.exp(6)) / (1 + TAU2 * math.exp(-6)))  # of v d SNR / 2
    diffusion = [total - report.terms["prior"].value - report.terms["reconstruction"].value for total in totals[-1:]]
    assert diffusion[0] == pytest.approx(integral, abs=0.05)
    assert abs(estimates[0] - totals[2]) < 0.2 * (totals[0] - totals[2])


def test_samples_of_a_log_snr_network_on_another_schedule():
    for schedule in (LogSNRSchedule(40, log_snr_start=6.0), CosineSchedule(300)):
        stepwise = Denoiser(GaussianOracle(schedule, TAU2), schedule, X0Parametrization())
        images = [AncestralSampler()(denoiser, (64, 1, 1, 1)) for denoiser in (log_snr_oracle(schedule), stepwise)]
        torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


def test_a_unet_takes_the_time_of_log_snr():
    torch.manual_seed(0)
    network = UNet(width=8, time="log_snr")
    nn.init.normal_(network.conv_out.weight)
    denoiser = Denoiser(network, LogSNRSchedule(100), VParametrization())
    x = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1)
    out = denoiser(x, torch.tensor([1, 50, 100]))
    assert float((out[0] - out[2]).abs().max()) > 1e-3
    torch.testing.assert_close(out[1:2], denoiser(x[:1], torch.tensor([50.0])))  # a real number is a timestep, too


def test_a_network_with_classes_takes_the_time_of_log_snr_without_a_label():
    x = torch.randn(2, 1, 8, 8)
    for network in (
        UNet(width=8, num_classes=3, time="log_snr"),
        DiffusersUNet(
            {
                "in_channels": 1,
                "block_out_channels": (8,),
                "down_block_types": ["DownBlock2D"],
                "up_block_types": ["UpBlock2D"],
                "norm_num_groups": 4,
            },
            num_classes=3,
            time="log_snr",
        ),
    ):
        denoiser = Denoiser(network, LogSNRSchedule(100), VParametrization())
        no_label = torch.tensor([3, 3])
        torch.testing.assert_close(denoiser(x, 50), denoiser(x, 50, label=no_label))


def test_real_timesteps_of_a_stepwise_network_are_refused():
    with pytest.raises(TypeError, match="t must contain integers"):
        Denoiser(nn.Identity(), LinearSchedule(100), VParametrization())(torch.zeros(1, 1, 2, 2), torch.tensor([2.0]))


def test_a_network_states_nothing_by_default():
    assert NetworkSpec.of(nn.Identity()) == NetworkSpec(
        name="Identity",
        in_channels=None,
        out_channels=None,
        dims=None,
        num_classes=None,
        no_label=None,
        cond_channels=None,
        time="t",
    )


def test_attributes_of_a_network_are_read():
    found = NetworkSpec.of(UNet(2, 4, width=8, num_classes=5, cond_channels=3, time="log_snr"))
    assert (found.name, found.in_channels, found.out_channels, found.dims) == ("UNet", 2, 4, 2)
    assert (found.num_classes, found.no_label, found.cond_channels, found.time) == (5, 5, 3, "log_snr")
    network = Recorder()
    network.no_label = False
    assert (NetworkSpec.of(network).num_classes, NetworkSpec.of(network).no_label) == (3, None)


def test_a_layer_named_time_is_not_a_time():
    network = TinyNetwork(num_steps=20)
    assert isinstance(network.time, nn.Embedding)
    assert NetworkSpec.of(network).time == "t"


def test_a_wrong_time_is_refused():
    network = nn.Identity()
    network.time = "snr"
    for read in (NetworkSpec.of, lambda network: Denoiser(network, LinearSchedule(100), VParametrization())):
        with pytest.raises(ValueError, match="time = 'snr' of Identity must be one of t, log_snr"):
            read(network)
