"""The variance of the reverse process, above all the best one for a given mean."""

import math

import pytest
import torch
from helpers import TinyNetwork, continuous, learned_variance_denoiser, oracle, tiny_denoiser

from lit_ddpm import (
    CosineSchedule,
    Denoiser,
    DiscretizedGaussian,
    GaussianDecoder,
    LinearSchedule,
    LogSNRSchedule,
    PosteriorKL,
    VParametrization,
    kl_weight,
    training_loss,
    variational_bound,
)
from lit_ddpm.diffusion.gaussian import posterior_coefficients
from lit_ddpm.diffusion.guidance import GuidedDenoiser
from lit_ddpm.diffusion.timesteps import UniformTimesteps
from lit_ddpm.diffusion.variance import model_variance, smooth_x0_mse

SCHEDULES = [LinearSchedule(60), CosineSchedule(40), LogSNRSchedule(50, log_snr_start=8.0)]
TAU2 = 0.25


def levels(count=6):
    return torch.randint(0, 17, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0)).double() / 8 - 1


def with_best_variance(denoiser, x0_mse):
    network, schedule, parametrization = denoiser.network, denoiser.schedule, denoiser.parametrization
    return Denoiser(network, schedule, parametrization, "analytic", denoiser.clip, x0_mse)


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_best_variance_of_the_measured_images(schedule, clips):
    """The KL at each t is ln(1 + c_0^2 m/sigma_q^2) / 2 per dimension, and never more than that of sigma_q^2."""
    torch.manual_seed(0)
    network = TinyNetwork(num_steps=schedule.num_steps).double()
    fixed = Denoiser(network, schedule, VParametrization(), clip=clips)
    x_0, decoder = levels(), DiscretizedGaussian(17)
    before = variational_bound(fixed, x_0, decoder)
    x0_mse = before.squared_error / before.visits
    after = variational_bound(with_best_variance(fixed, x0_mse), x_0, decoder)
    t = torch.arange(2, schedule.num_steps + 1)
    c = posterior_coefficients(schedule, t)
    expected = 0.5 * torch.log(1 + c.c_0**2 * x0_mse[1:] / c.var)
    torch.testing.assert_close(after.profile / 16, expected, rtol=1e-9, atol=1e-12)
    assert bool((after.profile <= before.profile * (1 + 1e-12)).all())
    report = before.report()
    total = before.prior + after.diffusion + before.reconstruction_by_scale.min() / len(x_0)
    if before.decoder_scale() == 1:
        torch.testing.assert_close(before.reconstruction_by_scale.min(), before.reconstruction.sum())
    assert report.best_variance == pytest.approx(float(total.mean()) / 16 / math.log(2), rel=1e-9)
    assert report.best_variance < report.terms["total"].value
    assert "with the best variance" in str(report)
    # The Riemann sums of the same terms on both sides of the integral over SNR.
    w = kl_weight(schedule, t)
    at_scale = with_best_variance(fixed, schedule.beta(1) * before.decoder_scale() * torch.ones(schedule.num_steps))
    chosen = variational_bound(at_scale, x_0, decoder).reconstruction
    torch.testing.assert_close(chosen.sum(), before.reconstruction_by_scale.min())
    assert float(chosen.sum()) <= float(before.reconstruction.sum())
    rest = float((before.prior + before.reconstruction).mean()) / 16
    sums = [float((w * m).sum()) + rest for m in (x0_mse[:-1], x0_mse[1:])]
    assert report.infinite_steps == pytest.approx([value / math.log(2) for value in sums], rel=1e-9)
    assert report.infinite_steps[1] == pytest.approx(report.terms["total"].value, rel=1e-9)
    assert f"with infinite steps {sum(sums) / 2 / math.log(2):14.4f}   between" in str(report)
    assert report.metrics("test")["test/bpd_infinite_steps"] == pytest.approx(sum(sums) / 2 / math.log(2), rel=1e-9)
    assert report.metrics("test")["test/bpd_best_variance"] == report.best_variance


@pytest.mark.parametrize("num_steps", [20, 100, 1000])
def test_the_bound_of_a_gaussian_is_its_entropy_at_every_number_of_steps(num_steps):
    """The reverse process of a Gaussian is Gaussian, so the best variance leaves the prior's KL as the only gap."""
    schedule = LinearSchedule(num_steps)
    t = torch.arange(1, num_steps + 1)
    v = 1 / (1 / TAU2 + schedule.snr(t))  # the variance of x_0 given x_t
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(400, 1, 1, 4, generator=generator, dtype=torch.float64) * math.sqrt(TAU2)
    bound = variational_bound(with_best_variance(oracle(schedule, TAU2), v), x_0, GaussianDecoder())
    marginal = schedule.alpha_bar(num_steps) * TAU2 + schedule.one_minus_alpha_bar(num_steps)
    expected = 0.5 * math.log(2 * math.pi * math.e * TAU2) + 0.5 * float(marginal - 1 - marginal.log())
    mean, error = float(bound.total.mean()) / 4, float(bound.total.std()) / 4 / math.sqrt(len(x_0))
    assert abs(mean - expected) < 4 * error
    # In expectation, term by term.
    terms = 0.5 * torch.log1p(2 * kl_weight(schedule, t) * v)[1:].sum() + 0.5 * torch.log(2 * math.pi * math.e * v[0])
    bar = schedule.alpha_bar(num_steps)
    prior = 0.5 * (bar * TAU2 - bar - (1 - bar).log())
    assert float(terms + prior) == pytest.approx(expected, abs=1e-9)
    fixed = variational_bound(oracle(schedule, TAU2), x_0, GaussianDecoder())
    assert float(fixed.total.mean()) / 4 > expected + 0.2  # sigma_q^2 denies the error of the mean


def test_strides_and_the_last_step():
    schedule, x0_mse = LinearSchedule(50), torch.linspace(0.01, 0.4, 50, dtype=torch.float64)
    t, s = torch.tensor([50, 20, 5, 1]), torch.tensor([40, 3, 0, 0])
    c = posterior_coefficients(schedule, t, s)
    torch.testing.assert_close(model_variance(c, schedule, t, "analytic", x0_mse), c.var + c.c_0**2 * x0_mse[t - 1])
    assert float(model_variance(posterior_coefficients(schedule, 1), schedule, 1, "analytic", x0_mse)) == pytest.approx(
        0.01
    )
    torch.testing.assert_close(
        model_variance(c, schedule, t, "analytic"), model_variance(c, schedule, t, "posterior"), rtol=0, atol=0
    )
    zero = torch.zeros(50, dtype=torch.float64)
    torch.testing.assert_close(
        model_variance(c, schedule, t, "analytic", zero), model_variance(c, schedule, t, "posterior"), rtol=0, atol=0
    )


def test_an_unmeasured_variance_is_refused():
    denoiser = tiny_denoiser(variance="analytic")
    with pytest.raises(ValueError, match="variance = 'analytic' needs the x0-MSE of validation images"):
        denoiser.p_posterior(torch.zeros(1, 1, 4, 4), 5)


def test_training_is_that_of_the_posterior():
    x_0 = levels().float()
    losses = []
    for variance in ("posterior", "analytic"):
        torch.manual_seed(1)
        denoiser = tiny_denoiser(variance=variance)
        denoiser.set_x0_mse(torch.full((40,), 0.1))
        losses.append(training_loss(denoiser, x_0, PosteriorKL(DiscretizedGaussian(17)), UniformTimesteps()).losses)
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_guidance_has_the_measured_errors():
    denoiser = learned_variance_denoiser(num_classes=3)
    denoiser.set_x0_mse(torch.ones(50))
    assert torch.equal(GuidedDenoiser(denoiser, 2.0).x0_mse, denoiser.x0_mse)


def test_measurements_belong_to_a_schedule():
    denoiser = tiny_denoiser(variance="analytic")
    assert list(denoiser.state()) == ["log_alpha_bar"]
    denoiser.set_x0_mse(torch.zeros(40))  # at the start of a fit
    assert list(denoiser.state()) == ["log_alpha_bar"]
    denoiser.set_x0_mse(torch.rand(40, dtype=torch.float64))
    again = tiny_denoiser(variance="analytic")
    again.load_state(denoiser.state())
    assert torch.equal(again.x0_mse, denoiser.x0_mse)
    for schedule in (LinearSchedule(41), CosineSchedule(40)):
        other = Denoiser(denoiser.network, schedule, denoiser.parametrization, "analytic")
        with pytest.warns(UserWarning, match="trained with another schedule of 40 steps"):
            other.load_state(denoiser.state())
        assert other.x0_mse is None


def test_measurements_of_a_log_snr_network_are_interpolated():
    schedule = LogSNRSchedule(30, log_snr_start=8.0, log_snr_end=-6.0)
    denoiser = Denoiser(continuous(torch.nn.Identity()), schedule, VParametrization(), "analytic")
    denoiser.set_x0_mse(1 / (1 + schedule.snr(torch.arange(1, 31))))
    finer = LogSNRSchedule(300, log_snr_start=7.5, log_snr_end=-6.0)
    other = Denoiser(denoiser.network, finer, denoiser.parametrization, "analytic")
    other.load_state(denoiser.state())
    expected = 1 / (1 + finer.snr(torch.arange(1, 301)))
    torch.testing.assert_close(other.x0_mse, expected, rtol=0.02, atol=0)
    for outside in (LogSNRSchedule(30, log_snr_start=8.1), LogSNRSchedule(30, log_snr_start=8.0, log_snr_end=-6.1)):
        far = Denoiser(denoiser.network, outside, denoiser.parametrization)
        with pytest.raises(ValueError, match=r"has a log SNR of 8\.?1? to -6.*trained on 8 to -6: change the ends"):
            far.load_state(denoiser.state())


def test_errors_are_interpolated_between_few_calls():
    t = torch.arange(1, 401, dtype=torch.float64)
    true = torch.exp(-8 + 7 * (t / 400) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    visits = torch.poisson(torch.full((400,), 0.8, dtype=torch.float64), generator=generator)
    visits[0] = 30
    noise = 1 + 0.2 * torch.randn(400, generator=generator, dtype=torch.float64)
    found = smooth_x0_mse(true * visits * noise, visits)
    assert bool(found.isfinite().all())
    ratio = found / true
    assert 0.7 < float(ratio.min()) < float(ratio.max()) < 1.4
    assert abs(float(ratio.log().mean())) < 0.05
    torch.testing.assert_close(smooth_x0_mse(true * 5, torch.full((400,), 5.0)), true)


@pytest.mark.parametrize("visited", [[0, 1], [0, 399]])
def test_timesteps_without_calls_have_the_nearest_error(visited):
    visits = torch.zeros(400, dtype=torch.float64)
    visits[visited] = 3
    found = smooth_x0_mse(visits * 0.2, visits)
    torch.testing.assert_close(found, torch.full((400,), 0.2, dtype=torch.float64))
