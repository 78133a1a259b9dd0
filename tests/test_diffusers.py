"""A second derivation: diffusers' DDPMScheduler, which shares no code with ours."""

import pytest
import torch
from conftest import TinyNetwork
from diffusers import DDPMScheduler

from lit_ddpm import AncestralSampler, Denoiser, EpsParametrization, LinearSchedule, VParametrization, X0Parametrization
from lit_ddpm.sampler import standard_normal
from lit_ddpm.seeding import keyed_generator

CASES = [
    ("epsilon", EpsParametrization(), "posterior", "fixed_small"),
    ("epsilon", EpsParametrization(), "beta", "fixed_large"),
    ("sample", X0Parametrization(), "posterior", "fixed_small"),
    ("v_prediction", VParametrization(), "beta", "fixed_large"),
]


def theirs(prediction_type, variance_type, schedule, float64):
    scheduler = DDPMScheduler(
        schedule.num_steps, prediction_type=prediction_type, variance_type=variance_type, clip_sample=False
    )
    if float64:
        t = torch.arange(1, schedule.num_steps + 1)
        scheduler.betas, scheduler.alphas = schedule.beta(t), schedule.alpha(t)
        scheduler.alphas_cumprod = schedule.alpha_bar(t)
        scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize(("prediction_type", "parametrization", "variance", "variance_type"), CASES)
def test_mean_and_variance_of_a_reverse_step(prediction_type, parametrization, variance, variance_type):
    schedule = LinearSchedule()
    scheduler = theirs(prediction_type, variance_type, schedule, float64=True)
    x_t, output = torch.randn(2, 1, 1, 3, 3, dtype=torch.float64)

    class Fixed(torch.nn.Module):
        def forward(self, x, t):
            return output

    denoiser = Denoiser(Fixed(), schedule, parametrization, variance)
    for t in range(1, 1001):
        p = denoiser.p_posterior(x_t, t)
        no_noise = _step(scheduler, output, t, x_t, torch.zeros_like(x_t))
        torch.testing.assert_close(p.mean, no_noise, rtol=1e-10, atol=1e-10)
        if t > 1:
            noise = torch.ones_like(x_t)
            std = (_step(scheduler, output, t, x_t, noise) - no_noise).mean()
            torch.testing.assert_close(std**2, p.var.reshape(()), rtol=1e-10, atol=1e-13)


def _step(scheduler, output, t, x_t, noise):
    """One step of theirs with the noise given, by way of their own random function."""
    import diffusers.schedulers.scheduling_ddpm as module

    original = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: noise
    try:
        return scheduler.step(output, t - 1, x_t).prev_sample
    finally:
        module.randn_tensor = original


def test_ancestral_samples_from_the_same_network_and_noise(monkeypatch):
    schedule = LinearSchedule()
    torch.manual_seed(0)
    denoiser = Denoiser(TinyNetwork(), schedule, EpsParametrization())
    sampler = AncestralSampler(chunk_size=4)
    ours = sampler(denoiser, (4, 1, 8, 8), seed=5)

    scheduler = theirs("epsilon", "fixed_small", schedule, float64=False)
    generator = keyed_generator("sample", 5, 0)
    x = standard_normal((4, 1, 8, 8), generator, torch.device("cpu"))
    with torch.no_grad():
        for t in range(1000, 0, -1):
            output = denoiser.network(x, torch.full((4,), t))
            noise = standard_normal(x.shape, generator, x.device) if t > 1 else torch.zeros_like(x)
            x = _step(scheduler, output, t, x, noise)
    scale = float(x.abs().max())
    assert float((ours - x).abs().max()) / max(scale, 1.0) < 1e-4
