import pytest
import torch
from helpers import COMBINATIONS, PARAMETRIZATIONS

from lit_ddpm import (
    Denoiser,
    EDMParametrization,
    EpsParametrization,
    GuidedDenoiser,
    LinearSchedule,
    MeanParametrization,
    VParametrization,
    q_marginal,
    q_posterior,
)


@pytest.mark.parametrize(("schedule", "parametrization"), COMBINATIONS)
def test_round_trip(schedule, parametrization):
    T = schedule.num_steps
    t = torch.arange(1, T + 1)
    x_0, eps = torch.randn(2, T, 3, dtype=torch.float64)
    x_t = q_marginal(schedule, x_0, t).sample(eps)
    output = parametrization.target(schedule, x_0, eps, t)
    # An output of size 1 is divided by the signal (eps) or by c_0 (mean): rounding grows by just as much.
    _, scale = parametrization.coefficients(schedule, t)
    error = (parametrization.x0_hat(schedule, output, x_t, t) - x_0).abs().amax(1)
    assert bool((error < 1e-13 * (1 + scale.abs()) * 30).all())


def test_targets_match_their_definitions(schedule):
    T = schedule.num_steps
    t = torch.arange(2, T)
    x_0, eps = torch.randn(2, T - 2, 3, dtype=torch.float64)
    x_t = q_marginal(schedule, x_0, t).sample(eps)
    bar = schedule.alpha_bar(t)[:, None]
    eps_target = EpsParametrization().target(schedule, x_0, eps, t)
    torch.testing.assert_close(eps_target, eps, rtol=1e-9, atol=1e-9)
    v = bar.sqrt() * eps - (1 - bar).sqrt() * x_0
    torch.testing.assert_close(VParametrization().target(schedule, x_0, eps, t), v, rtol=1e-9, atol=1e-9)
    mu = q_posterior(schedule, x_t, x_0, t).mean
    torch.testing.assert_close(MeanParametrization().target(schedule, x_0, eps, t), mu, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "parametrization", [EpsParametrization(), MeanParametrization()], ids=lambda p: type(p).__name__
)
def test_eps_and_mean_are_refused_at_zero_terminal_snr(parametrization):
    with pytest.raises(ValueError, match=r"SNR\(T\) is zero.*VParametrization or X0Parametrization"):
        Denoiser(torch.nn.Identity(), LinearSchedule(zero_terminal_snr=True), parametrization)


def test_v_and_x0_work_at_zero_terminal_snr():
    for parametrization in (PARAMETRIZATIONS[0], PARAMETRIZATIONS[2]):
        denoiser = Denoiser(torch.nn.Conv2d(1, 1, 1), LinearSchedule(zero_terminal_snr=True), parametrization)
        denoiser.network.forward = lambda x, t: torch.zeros_like(x)
        x = torch.randn(2, 1, 4, 4)
        assert torch.isfinite(denoiser(x, 1000)).all()
        assert torch.isfinite(denoiser.p_posterior(x, 1000).mean).all()


def test_edm_is_the_preconditioning_of_the_paper(schedule):
    """c_skip and c_out of Karras et al. 2022, table 1, for x_t / sqrt(alpha_bar) = x_0 + sigma eps; c_in."""
    t = torch.arange(1, schedule.num_steps)
    bar, std = schedule.alpha_bar(t), 0.4
    sigma = 1 / schedule.snr(t).sqrt()
    skip, scale = EDMParametrization(sigma_data=std).coefficients(schedule, t)
    torch.testing.assert_close(skip * bar.sqrt(), std**2 / (sigma**2 + std**2), rtol=1e-9, atol=0)
    torch.testing.assert_close(scale, sigma * std / (sigma**2 + std**2).sqrt(), rtol=1e-9, atol=0)
    seen = []
    denoiser = Denoiser(torch.nn.Identity(), schedule, EDMParametrization(std))
    denoiser.network.forward = lambda x, t: seen.append(x) or x
    x_t = torch.randn(len(t), 3, dtype=torch.float64)
    denoiser(x_t, t)
    expected = (x_t / bar.sqrt()[:, None]) / (sigma**2 + std**2).sqrt()[:, None]
    torch.testing.assert_close(seen[0], expected, rtol=1e-9, atol=0)


def test_edm_has_a_target_of_unit_variance(schedule):
    t = torch.arange(1, schedule.num_steps)
    one, zero = torch.ones(len(t), 1, dtype=torch.float64), torch.zeros(len(t), 1, dtype=torch.float64)
    target = EDMParametrization(sigma_data=0.3).target
    of_x_0, of_eps = target(schedule, one, zero, t), target(schedule, zero, one, t)
    torch.testing.assert_close((0.3 * of_x_0) ** 2 + of_eps**2, one, rtol=1e-9, atol=0)


def test_edm_of_unit_data_predicts_v_with_the_opposite_sign(schedule):
    t = torch.arange(1, schedule.num_steps + 1)
    (skip, scale), (v_skip, v_scale) = (
        parametrization.coefficients(schedule, t) for parametrization in (EDMParametrization(1.0), VParametrization())
    )
    torch.testing.assert_close((skip, scale), (v_skip, -v_scale), rtol=1e-12, atol=1e-15)


def test_sigma_data_must_be_positive():
    with pytest.raises(ValueError, match="sigma_data = 0 of EDMParametrization must be positive"):
        EDMParametrization(sigma_data=0)


class Inputs(torch.nn.Module):
    """A class-conditional network that keeps its inputs."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x_t, t, label):
        self.seen.append(x_t)
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("make", [lambda denoiser: denoiser, lambda denoiser: GuidedDenoiser(denoiser, 2.0)])
def test_the_input_of_the_network_is_scaled_by_edm_alone(make):
    schedule, network, std = LinearSchedule(50), Inputs(), 0.3
    x_t, t, label = torch.randn(4, 1, 5, 5), torch.tensor([1, 7, 30, 50]), torch.tensor([0, 1, 2, 2])
    make(Denoiser(network, schedule, EDMParametrization(std)))(x_t, t, label=label)
    bar = schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
    x_t_variance = bar * std**2 + 1 - bar
    for half in network.seen[0].split(4):
        torch.testing.assert_close(half, (x_t / x_t_variance.sqrt()).float(), rtol=1e-6, atol=0)
    for parametrization in PARAMETRIZATIONS[:-1]:
        make(Denoiser(network, schedule, parametrization))(x_t, t, label=label)
        assert all(torch.equal(half, x_t) for half in network.seen[-1].split(4))
        assert parametrization.input_scale(schedule, t) is None
