"""Predictions of a denoiser, and its learned variance."""

import math

import pytest
import torch
from helpers import FIT_DIGITS, VarianceNetwork, error_of, learned_variance_denoiser

from lit_ddpm import (
    AncestralSampler,
    Denoiser,
    DiscretizedGaussian,
    HybridObjective,
    LinearSchedule,
    LogSNRSchedule,
    PosteriorKL,
    UNet,
    VParametrization,
    X0Parametrization,
    variational_bound,
)
from lit_ddpm.diffusion.gaussian import posterior_coefficients


@pytest.mark.parametrize("schedule", [LinearSchedule(50), LogSNRSchedule(num_steps=50)], ids=str)
def test_learned_variance_interpolates_in_log_space(schedule):
    model = learned_variance_denoiser(schedule)
    x_t = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    for position in (-1.0, 0.0, 1.0, 0.37):
        model.network.position.weight.data.fill_(position)
        for t, s in ((30, 29), (30, 10), (2, 1)):
            c = posterior_coefficients(schedule, t, s)
            v = (position + 1) / 2
            expected = math.exp(v * math.log(c.beta) + (1 - v) * math.log(c.var))
            var = model.p_posterior(x_t, t, s).var
            assert var.shape == x_t.shape
            torch.testing.assert_close(var, torch.full_like(x_t, expected), rtol=1e-10, atol=0)
        variance_at_2, beta_1 = float(posterior_coefficients(schedule, 2).var), float(schedule.beta(1))
        expected = beta_1**v * min(variance_at_2, beta_1) ** (1 - v)
        assert float(model.p_posterior(x_t, 1).var.max()) == pytest.approx(expected)


def test_ends_of_the_learned_variance_are_the_fixed_ones():
    x_0 = torch.randint(0, 17, (4, 1, 4, 4)).double() / 8 - 1
    for position, variance in ((-1.0, "posterior"), (1.0, "beta")):
        model = learned_variance_denoiser()
        model.network.position.weight.data.fill_(position)

        class First(torch.nn.Module):
            def __init__(self, network):
                super().__init__()
                self.network = network

            def forward(self, x_t, t):
                return self.network(x_t, t).chunk(2, dim=1)[0]

        fixed = Denoiser(First(model.network), model.schedule, model.parametrization, variance).double()
        found, expected = (variational_bound(m, x_0, DiscretizedGaussian(17)) for m in (model, fixed))
        torch.testing.assert_close(found.diffusion, expected.diffusion, rtol=1e-9, atol=1e-9)
        if variance == "beta":
            torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=1e-9, atol=1e-9)
        sampler = AncestralSampler(10, chunk_size=4)
        # x_T is float32, and so is the arithmetic of the first steps.
        torch.testing.assert_close(sampler(model, (4, 1, 4, 4)), sampler(fixed, (4, 1, 4, 4)), rtol=1e-5, atol=1e-5)


def test_the_estimate_is_computed_outside_autocast():
    class Recording(X0Parametrization):
        def x0_hat(self, schedule, output, x_t, t):
            seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
            return super().x0_hat(schedule, output, x_t, t)

    seen, denoiser = [], Denoiser(torch.nn.Conv2d(1, 1, 1), LinearSchedule(50), Recording())
    denoiser.network.forward = lambda x_t, t: x_t.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        denoiser(torch.zeros(2, 1, 4, 4), 20)
    assert seen == [(torch.float32, False)]


@pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4)])
def test_an_output_has_the_shape_of_the_image(shape):
    class Given(torch.nn.Module):
        def forward(self, x_t, t):
            return torch.ones(self.shape)

    denoiser = Denoiser(Given(), LinearSchedule(50), X0Parametrization())
    denoiser.network.shape = (5, *shape)
    assert denoiser(torch.zeros(5, *shape), 3).shape == (5, *shape)
    for wrong in ((4, *shape), (5, *shape, 1), (5, 3, *shape[1:])):
        denoiser.network.shape = wrong
        with pytest.raises(ValueError, match="check its out_channels"):
            denoiser(torch.zeros(5, *shape), 3)


def test_clipping_moves_only_values_outside_the_data():
    output = torch.tensor([[-3.0, -1.0, -0.2, 0.7, 1.0, 2.0]])
    denoiser = Denoiser(torch.nn.Identity(), LinearSchedule(50), X0Parametrization(), clip=True)
    denoiser.network.forward = lambda x_t, t: output
    assert torch.equal(denoiser(output, 7), torch.tensor([[-1.0, -1.0, -0.2, 0.7, 1.0, 1.0]]))
    assert torch.equal(denoiser.predict(output, torch.tensor([7]), output).x0_hat, output)
    assert torch.equal(Denoiser(denoiser.network, denoiser.schedule, X0Parametrization())(output, 7), output)


def test_timesteps_of_a_denoiser_are_one_or_one_a_sample():
    denoiser = Denoiser(VarianceNetwork(50), LinearSchedule(50), VParametrization(), variance="learned")
    x_t = torch.zeros(3, 1, 4, 4)
    for t in (0, 51, torch.tensor([0, 1, 2])):
        with pytest.raises(ValueError, match=r"t = (0|51) .*1\.\.50"):
            denoiser(x_t, t)
    for t in (torch.ones(2, dtype=torch.int64), torch.ones(3, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"one timestep a sample, \[3\]"):
            denoiser(x_t, t)
    assert torch.equal(denoiser(x_t, 7), denoiser(x_t, torch.tensor([7, 7, 7])))


def test_optimal_variance_of_an_ideal_denoiser():
    """For data N(0, tau2) the KL is minimal at sigma_q^2 plus the squared error of the mean; L-BFGS finds it."""
    schedule, tau2 = LinearSchedule(50), 0.25

    class Ideal(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.position = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x_t, t):
            bar = schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
            mean = tau2 * bar.sqrt() / (tau2 * bar + 1 - bar) * x_t
            return torch.cat([mean, self.position.expand_as(x_t)], dim=1)

    network = Ideal()
    model = Denoiser(network, schedule, X0Parametrization(), variance="learned")
    generator = torch.Generator().manual_seed(0)
    x_0 = 0.5 * torch.randn(20000, 1, 1, 1, dtype=torch.float64, generator=generator)
    t = torch.full((20000,), 5)
    eps = torch.randn(x_0.shape, dtype=torch.float64, generator=generator)
    optimizer = torch.optim.LBFGS([network.position], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = PosteriorKL()(model, model.predict(x_0, t, eps)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    c = posterior_coefficients(schedule, 5)
    error = 1 / (1 / tau2 + float(schedule.snr(5)))  # the variance of x_0 given x_t
    best = float(c.var) + float(c.c_0) ** 2 * error
    found = float(model.p_posterior(x_0[:1], 5).var.detach())
    assert found == pytest.approx(best, rel=0.02)


def test_what_does_not_fit_a_learned_variance_is_refused(capsys):
    model = Denoiser(VarianceNetwork(50), LinearSchedule(50), VParametrization())
    with pytest.raises(ValueError, match=r"returned \[1, 2, 4, 4\] .*variance='posterior' needs \[1, 1, 4, 4\]"):
        model(torch.zeros(1, 1, 4, 4), 3)
    fixed = Denoiser(UNet(width=4), LinearSchedule(50), VParametrization())
    pred = fixed.predict(torch.zeros(1, 1, 8, 8), torch.tensor([3]), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="HybridObjective trains a variance: set variance to learned, not 'posterior'"):
        HybridObjective()(fixed, pred)
    with pytest.raises(ValueError, match="weight = 0 of HybridObjective must be positive"):
        HybridObjective(weight=0)
    assert "is not trained by X0MSE" in error_of(capsys, [*FIT_DIGITS, "--model.variance=learned"])
    message = error_of(capsys, [*FIT_DIGITS, "--model.variance=learned", "--model.objective=PosteriorKL"])
    assert "out_channels = 1 of UNet does not fit images of image_shape = [1, 8, 8]" in message
    assert "variance='learned' needs 2" in message
