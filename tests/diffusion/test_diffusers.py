"""Steps of diffusers' schedulers: an independent implementation to compare with."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from helpers import TinyNetwork, in_float64

from lit_ddpm import (
    AncestralSampler,
    DDIMSampler,
    Denoiser,
    DPMSolverSampler,
    EpsParametrization,
    LinearSchedule,
    VParametrization,
    X0Parametrization,
)
from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.diffusion.sampler import standard_normal

CASES = [
    ("epsilon", EpsParametrization(), "posterior", "fixed_small"),
    ("epsilon", EpsParametrization(), "beta", "fixed_large"),
    ("sample", X0Parametrization(), "posterior", "fixed_small"),
    ("v_prediction", VParametrization(), "beta", "fixed_large"),
]


def ddpm_scheduler(prediction_type, variance_type, schedule, float64):
    scheduler = DDPMScheduler(
        schedule.num_steps, prediction_type=prediction_type, variance_type=variance_type, clip_sample=False
    )
    return in_float64(scheduler, schedule) if float64 else scheduler


@pytest.mark.parametrize(("prediction_type", "parametrization", "variance", "variance_type"), CASES)
def test_mean_and_variance_of_a_reverse_step(prediction_type, parametrization, variance, variance_type):
    schedule = LinearSchedule()
    scheduler = ddpm_scheduler(prediction_type, variance_type, schedule, float64=True)
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
    """One step of a DDPMScheduler with given noise, by replacing its random function."""
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
    samples = sampler(denoiser, (4, 1, 8, 8), seed=5)

    scheduler = ddpm_scheduler("epsilon", "fixed_small", schedule, float64=False)
    generator = keyed_generator("sample", 5, 0)
    x = standard_normal((4, 1, 8, 8), generator, torch.device("cpu"))
    with torch.no_grad():
        for t in range(1000, 0, -1):
            output = denoiser.network(x, torch.full((4,), t))
            noise = standard_normal(x.shape, generator, x.device) if t > 1 else torch.zeros_like(x)
            x = _step(scheduler, output, t, x, noise)
    scale = float(x.abs().max())
    assert float((samples - x).abs().max()) / max(scale, 1.0) < 1e-4


PREDICTIONS = [("epsilon", EpsParametrization()), ("sample", X0Parametrization()), ("v_prediction", VParametrization())]


def recorded(denoiser, sampler, seed=0):
    """Every x_s of a trajectory in float64, and the network's outputs."""
    outputs = []
    denoiser.double().network.register_forward_hook(lambda module, args, output: outputs.append(output))
    generator = keyed_generator("test", seed)
    x_T = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        path = list(sampler.trajectory(denoiser, x_T, generator))
    return path, outputs


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("prediction_type", "parametrization"), PREDICTIONS)
def test_ddim_steps_are_those_of_diffusers(monkeypatch, prediction_type, parametrization, eta):
    schedule = LinearSchedule()
    sampler = DDIMSampler(50, eta)
    path, outputs = recorded(Denoiser(TinyNetwork(), schedule, parametrization), sampler)
    scheduler = DDIMScheduler(1000, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=True)
    scheduler.alphas_cumprod = schedule.alpha_bar(torch.arange(1, 1001))
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(50)
    generator = keyed_generator("test", 0)
    torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=generator)
    assert [t for t, _ in path] == list(range(1000, -1, -20))
    for (t, x_t), (s, x_s), output in zip(path, path[1:], outputs, strict=False):
        # diffusers steps back by a fixed stride, as this grid does.
        noise = standard_normal(x_t.shape, generator, x_t.device).double() if eta and s > 0 else torch.zeros_like(x_t)
        expected = scheduler.step(output, t - 1, x_t, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(x_s, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("num_steps", [4, 20, 50])
@pytest.mark.parametrize(("prediction_type", "parametrization"), PREDICTIONS)
def test_dpm_solver_steps_are_those_of_diffusers(prediction_type, parametrization, num_steps):
    schedule = LinearSchedule()
    path, outputs = recorded(Denoiser(TinyNetwork(), schedule, parametrization), DPMSolverSampler(num_steps))
    scheduler = DPMSolverMultistepScheduler(
        1000, prediction_type=prediction_type, solver_order=2, lower_order_final=False, final_sigmas_type="zero"
    )
    visited = torch.tensor([t for t, _ in path[:-1]])
    scheduler.set_timesteps(timesteps=(visited - 1).tolist())
    sigmas = (schedule.one_minus_alpha_bar(visited) / schedule.alpha_bar(visited)).sqrt()
    scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    # DPMSolverMultistepScheduler.step converts to float32 for the update; these are the functions it calls.
    estimates = []
    for number, ((_, x_t), (s, x_s), output) in enumerate(zip(path, path[1:], outputs, strict=False)):
        scheduler._step_index = number
        estimates.append(scheduler.convert_model_output(output, sample=x_t))
        if number == 0 or s == 0:
            expected = scheduler.dpm_solver_first_order_update(estimates[-1], sample=x_t)
        else:
            expected = scheduler.multistep_dpm_solver_second_order_update(estimates[-2:], sample=x_t)
        torch.testing.assert_close(x_s, expected, rtol=1e-8, atol=1e-8)
