"""Schedulers of diffusers and their equivalents."""

import pytest
import torch
from diffusers import DDPMScheduler
from helpers import in_float64

from lit_ddpm import (
    BetaSchedule,
    CosineSchedule,
    DDIMSampler,
    Denoiser,
    EDMParametrization,
    LinearSchedule,
    LogSNRSchedule,
    MeanParametrization,
    VParametrization,
)
from lit_ddpm.pipelines.scheduler import process_of, scheduler_config

SCHEDULES = [
    {},
    {"num_train_timesteps": 300, "beta_start": 1e-3, "beta_end": 0.1},
    {"beta_schedule": "scaled_linear", "beta_end": 0.03},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.1, 0.2, 0.3, 0.5, 0.9, 0.99], "num_train_timesteps": 6},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"rescale_betas_zero_snr": True, "prediction_type": "sample", "beta_schedule": "scaled_linear"},
]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"]


@pytest.mark.parametrize("settings", SCHEDULES)
def test_the_schedule_is_that_of_the_scheduler(settings):
    scheduler = DDPMScheduler(**settings)
    schedule = process_of(scheduler.config).schedule
    t = torch.arange(1, schedule.num_steps + 1)
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(schedule.alpha_bar(t), expected, rtol=1e-4, atol=1e-7)  # theirs is in float32
    torch.testing.assert_close(schedule.beta(t), scheduler.betas.double(), rtol=2e-4, atol=1e-6)


def test_named_schedules_stay_named():
    assert isinstance(process_of({}).schedule, LinearSchedule)
    assert isinstance(process_of({"beta_schedule": "squaredcos_cap_v2"}).schedule, CosineSchedule)


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("variance_type", VARIANCES)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_every_reverse_step_is_that_of_the_scheduler(prediction_type, variance_type, clips, monkeypatch):
    settings = {"prediction_type": prediction_type, "variance_type": variance_type, "clip_sample": clips}
    scheduler = DDPMScheduler(60, **settings)
    process = process_of(scheduler.config)
    in_float64(scheduler, process.schedule)
    learned = variance_type == "learned_range"
    output = torch.randn(2, 2 if learned else 1, 3, 3, dtype=torch.float64)
    if learned:
        output[:, 1].clamp_(-1, 1)
    x_t = torch.randn(2, 1, 3, 3, dtype=torch.float64)

    class Fixed(torch.nn.Module):
        def forward(self, x, t):
            return output

    denoiser = Denoiser(Fixed(), process.schedule, process.parametrization, process.variance, process.clip)
    for t in range(1, 61):
        p = denoiser.p_posterior(x_t, t)
        noise = torch.zeros_like(x_t)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise)  # noqa: B023  # read at once
        mean = scheduler.step(output, t - 1, x_t).prev_sample
        if variance_type != "fixed_large_log":
            torch.testing.assert_close(p.mean, mean, rtol=1e-8, atol=1e-8)
        if t == 1:
            continue
        if (
            variance_type == "fixed_large_log"
        ):  # diffusers takes the square root of the logarithm, which is not a number
            log_variance = scheduler._get_variance(t - 1)
            assert mean.isnan().all()
            torch.testing.assert_close(p.var.reshape(-1)[:1], log_variance.exp().reshape(1), rtol=1e-8, atol=1e-12)
            continue
        noise = torch.ones_like(x_t)
        drawn = scheduler.step(output, t - 1, x_t).prev_sample
        torch.testing.assert_close((drawn - mean) ** 2, p.var.expand_as(mean), rtol=1e-8, atol=1e-8)


def test_a_ddim_scheduler_has_ddim_steps():
    process = process_of({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"})
    assert isinstance(process.sampler, DDIMSampler)
    assert (process.sampler.num_steps, process.variance, process.clip) == (50, "fixed_small", True)
    assert isinstance(process.parametrization, VParametrization)
    with pytest.warns(UserWarning, match="set_alpha_to_one = False of the scheduler is ignored"):
        process_of({"_class_name": "DDIMScheduler", "set_alpha_to_one": False})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler must be a DDPMScheduler or a DDIMScheduler"),
        ({"thresholding": True}, "thresholding = True .* has no equivalent"),
        ({"clip_sample_range": 2.0}, "clip_sample_range = 2.0 .* must be 1"),
        ({"variance_type": "learned"}, "variance_type = 'learned' .* must be one of fixed_small, .* learned_range"),
        ({"prediction_type": "flow"}, "prediction_type = 'flow' .* must be one of epsilon, sample, v_prediction"),
        ({"beta_schedule": "laplace"}, "beta_schedule = 'laplace' .* must be linear, .* sigmoid, or trained_betas"),
        ({"trained_betas": [0.1, 1.5]}, r"beta\(2\) = 1.5, but every beta must be in \(0, 1\]"),
    ],
)
def test_what_has_no_equivalent_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        process_of(config)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned", "fixed_small", "fixed_large"])
def test_a_process_survives_its_configuration(variance):
    schedule = LogSNRSchedule(50, log_snr_start=8.0)
    network = torch.nn.Identity()
    process = process_of(scheduler_config(Denoiser(network, schedule, VParametrization(), variance, clip=True)))
    t = torch.arange(51)
    torch.testing.assert_close(process.schedule.log_alpha_bar(t), schedule.log_alpha_bar(t), rtol=1e-12, atol=1e-12)
    assert isinstance(process.schedule, BetaSchedule)
    assert process.clip
    assert process.variance == {"posterior": "fixed_small", "beta": "fixed_large"}.get(variance, variance)


def test_a_mean_has_no_scheduler():
    with pytest.raises(ValueError, match=r"parametrization = MeanParametrization has no DDPMScheduler: .* Eps"):
        scheduler_config(Denoiser(torch.nn.Identity(), LinearSchedule(), MeanParametrization()))


def test_a_scaled_input_has_no_scheduler():
    with pytest.raises(ValueError, match=r"parametrization = EDMParametrization has no DDPMScheduler"):
        scheduler_config(Denoiser(torch.nn.Identity(), LogSNRSchedule(50), EDMParametrization()))
