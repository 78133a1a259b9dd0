"""Objectives in continuous time."""

import pytest
import torch
from torch import nn

from lit_ddpm import (
    DDPM,
    X0MSE,
    AdaptiveTimesteps,
    Denoiser,
    KLWeighting,
    LinearSchedule,
    LogSNRSchedule,
    MeanParametrization,
    MinSNRWeighting,
    PosteriorKL,
    PredictionMSE,
    SNRWeighting,
    UNet,
    VParametrization,
    X0Parametrization,
    kl_weight,
    training_loss,
)
from lit_ddpm.training.kl_metrics import kl_metrics


class Fixed(AdaptiveTimesteps):
    """Given timesteps."""

    def __init__(self, t):
        super().__init__(continuous=True)
        self.t = t

    def sample(self, batch_size, num_steps, generator=None):
        return self.t, torch.ones(batch_size, dtype=torch.float64)


class Half(nn.Module):
    """Half of x_t as the estimate of x_0."""

    time = "log_snr"

    def forward(self, x_t, t):
        return 0.5 * x_t


def test_the_continuous_objective_is_the_limit_of_the_discrete_one():
    """T w_t of ever finer steps tends to the weight at the same noise; the KL of a unit step agrees with it."""
    x_0 = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    objective, log_snr = X0MSE(KLWeighting()), torch.tensor([5.0, 1.0, -3.0], dtype=torch.float64)
    losses = {}
    for num_steps in (100, 10_000):
        schedule = LogSNRSchedule(num_steps, log_snr_start=8.0)
        denoiser = Denoiser(Half(), schedule, X0Parametrization())
        t = schedule.time_of(log_snr)
        torch.manual_seed(0)
        loss = training_loss(denoiser, x_0, objective, Fixed(t))
        losses[num_steps] = (num_steps - 1) * loss.losses
        step = 1 - torch.exp(schedule.log_snr(t) - schedule.log_snr(t - 1))
        discrete = (num_steps - 1) * kl_weight(schedule, t) / (loss.losses / X0MSE()(denoiser, loss.pred))
        torch.testing.assert_close(discrete / (num_steps - 1), torch.ones(3).double(), rtol=float(step.max()), atol=0)
        found = kl_metrics(denoiser, loss.pred, loss.weight)
        torch.testing.assert_close(found.kl, kl_weight(schedule, t) * X0MSE()(denoiser, loss.pred), rtol=1e-9, atol=0)
        assert float(found.values["train/form_gap"]) < 1e-9
        assert found.t.tolist() == t.round().long().tolist()
    torch.testing.assert_close(losses[100], losses[10_000], rtol=1e-9, atol=0)  # the axis has no length
    weight = -LogSNRSchedule(100, log_snr_start=8.0).snr_slope(LogSNRSchedule(100, log_snr_start=8.0).time_of(log_snr))
    torch.testing.assert_close(weight, torch.exp(log_snr) * 14 / 99, rtol=1e-9, atol=0)


@pytest.mark.parametrize("objective", [PredictionMSE(), X0MSE(SNRWeighting()), X0MSE(MinSNRWeighting())], ids=str)
def test_other_objectives_in_continuous_time(objective):
    denoiser = Denoiser(Half(), LinearSchedule(50), VParametrization())
    x_0 = torch.randn(4, 1, 4, 4)
    torch.manual_seed(0)
    at_reals = training_loss(denoiser, x_0, objective, Fixed(torch.arange(2, 6).double()))
    torch.manual_seed(0)
    at_steps = training_loss(denoiser, x_0, objective, Fixed(torch.arange(2, 6)))
    torch.testing.assert_close(at_reals.losses, at_steps.losses, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"time": "t"},
            "timesteps = AdaptiveTimesteps draws real numbers: set time of the network to log_snr, not 't'",
        ),
        (
            {"objective": PosteriorKL()},
            "AdaptiveTimesteps does not fit PosteriorKL, which is defined by single steps",
        ),
        ({"parametrization": MeanParametrization()}, "AdaptiveTimesteps does not fit MeanParametrization"),
        ({"schedule": LinearSchedule(20, zero_terminal_snr=True)}, r"needs a schedule with SNR\(T\) > 0"),
        ({"time": "sigma"}, "time = 'sigma' of UNet must be one of t, log_snr"),
    ],
)
def test_what_has_no_continuous_form(settings, message):
    model = {"parametrization": VParametrization(), "timesteps": AdaptiveTimesteps(continuous=True)}
    time = settings.get("time", "log_snr")
    with pytest.raises(ValueError, match=message):
        DDPM(UNet(width=8, time=time), **{**model, **{k: v for k, v in settings.items() if k != "time"}})
