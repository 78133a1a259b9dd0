"""The exact likelihood, against closed forms."""

import math
import sys

import pytest
import torch
from helpers import TinyNetwork, continuous
from torch import nn

from lit_ddpm import (
    CosineSchedule,
    Denoiser,
    DiscretizedGaussian,
    EpsParametrization,
    GaussianDecoder,
    LinearSchedule,
    LogSNRSchedule,
    MeanParametrization,
    VParametrization,
    X0Parametrization,
    exact_likelihood,
    variational_bound,
)
from lit_ddpm.likelihood.flow import Likelihood, _noise
from lit_ddpm.likelihood.report import Report

MEANS, WEIGHTS, TAU2 = torch.tensor([-0.5, 0.1, 0.75]).double(), torch.tensor([0.2, 0.5, 0.3]).double(), 0.01
SCHEDULES = [LogSNRSchedule(200, log_snr_start=8.0, log_snr_end=-9.0), LinearSchedule(1000), CosineSchedule(400)]


class MixtureOracle(nn.Module):
    """The ideal estimate of x_0 for a mixture of Gaussians in each dimension, from the time of a log-SNR network."""

    time = "log_snr"

    def forward(self, x_t, time):
        bar = torch.sigmoid(-4 * torch.logit(time.double() / 1000)).reshape(-1, 1, 1, 1, 1)
        x = x_t.double()[..., None]
        variance = bar * TAU2 + 1 - bar
        responsibility = (WEIGHTS.log() - 0.5 * (x - bar.sqrt() * MEANS) ** 2 / variance).softmax(-1)
        mean = MEANS + bar.sqrt() * TAU2 / variance * (x - bar.sqrt() * MEANS)
        return (responsibility * mean).sum(-1).to(x_t)


def mixture_nats(x, signal2):
    """-log p(x_t) of the mixture with noise, summed over the dimensions."""
    variance = signal2 * TAU2 + 1 - signal2
    log_density = -0.5 * ((x[..., None] - signal2.sqrt() * MEANS) ** 2 / variance + torch.log(2 * torch.pi * variance))
    return -(WEIGHTS.log() + log_density).logsumexp(-1).flatten(1).sum(1)


def mixture_images(count=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(WEIGHTS, count * 4, replacement=True, generator=generator).reshape(count, 1, 2, 2)
    noise = torch.randn(component.shape, generator=generator, dtype=torch.float64)
    return MEANS[component] + math.sqrt(TAU2) * noise


def mixture_denoiser(schedule):
    return Denoiser(MixtureOracle(), schedule, X0Parametrization())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_likelihood_of_a_mixture(schedule):
    """Within 1e-3 nats a dimension of the closed form; -log p(x_1) + log q(x_1|x_0) + reconstruction is the total."""
    x_0 = mixture_images()
    found = exact_likelihood(mixture_denoiser(schedule), x_0, GaussianDecoder(), num_steps=128)
    again = exact_likelihood(mixture_denoiser(schedule), x_0, GaussianDecoder(), num_steps=128)
    assert torch.equal(found.total, again.total)
    bar = schedule.alpha_bar(1)
    # x_1 follows from the dequantization's noise, and it from the index of the image.
    x_1 = bar.sqrt() * x_0 + (1 - bar).sqrt() * _noise(x_0, 0)[0].double()
    closed = mixture_nats(x_1, bar)
    assert float((found.flow - closed).abs().mean()) / 4 < 1e-3
    density = torch.distributions.Normal(bar.sqrt() * x_0, (1 - bar).sqrt()).log_prob(x_1).flatten(1).sum(1)
    torch.testing.assert_close(found.dequantization, density, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.total, found.flow + found.dequantization + found.reconstruction)


def test_the_bound_is_above_the_likelihood_and_tends_to_it():
    """Both are measured for the same images; the gap of a perfect network closes as T grows."""
    x_0, gaps = mixture_images(256), []
    for num_steps in (30, 300):
        denoiser = mixture_denoiser(LogSNRSchedule(num_steps, log_snr_start=8.0, log_snr_end=-9.0))
        bound = variational_bound(denoiser, x_0, GaussianDecoder())
        gaps.append(float((bound.total - exact_likelihood(denoiser, x_0, GaussianDecoder()).total).mean()) / 4)
    assert gaps[0] > gaps[1] > 0
    assert gaps[1] < 0.2 * gaps[0]  # of 1.02 and 0.102: first order in the steps


def test_hutchinson_is_unbiased_for_coupled_dimensions():
    """A linear network has the trace of its matrix, of which a probe sees an estimate."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(0.2 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())

        def forward(self, x_t, time):
            return (x_t.flatten(1) @ self.matrix.T).reshape(x_t.shape)

    network = Linear()
    schedule = LogSNRSchedule(20, log_snr_start=4.0, log_snr_end=-4.0)
    denoiser = Denoiser(continuous(network), schedule, X0Parametrization())
    x_0 = torch.zeros(1, 1, 2, 2, dtype=torch.float64).expand(4000, -1, -1, -1)
    found = exact_likelihood(denoiser, x_0, GaussianDecoder(), num_steps=32)
    # The flow is linear: y(u_T) = M y(u_1), integrated here by the matrix exponentials of small steps.
    u = torch.linspace(-2, 2, 2001, dtype=torch.float64)
    total, log_det = torch.eye(4, dtype=torch.float64), 0.0
    for middle in ((u[1:] + u[:-1]) / 2).tolist():
        signal = math.sqrt(1 / (1 + math.exp(2 * middle)))
        generator = torch.eye(4, dtype=torch.float64) - signal * network.matrix.detach()
        total = torch.linalg.matrix_exp(generator * float(u[1] - u[0])) @ total
        log_det += float(generator.trace()) * float(u[1] - u[0])
    first, last = (float(schedule.alpha_bar(t).sqrt()) for t in (1, 20))
    x_1 = math.sqrt(1 - first**2) * _noise(x_0, 0)[0].double().flatten(1)
    x_last = last * (x_1 / first) @ total.T
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(x_last).sum(1)
    expected = -(prior + 4 * math.log(last / first) + log_det)
    difference = found.flow - expected
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(4000) + 1e-5


def test_an_image_has_one_likelihood_in_every_batch():
    torch.manual_seed(0)

    class Network(TinyNetwork):
        time = "log_snr"

        def forward(self, x_t, t):
            return torch.tanh(self.conv(x_t) * t[:, None, None, None] / 1000)

    denoiser = Denoiser(Network(), LogSNRSchedule(20), VParametrization(), clip=True).train()
    x_0 = torch.randint(0, 17, (5, 1, 4, 4)) / 8.0 - 1
    whole = exact_likelihood(denoiser, x_0, DiscretizedGaussian(17), num_steps=4)
    part = exact_likelihood(denoiser, x_0[3:], DiscretizedGaussian(17), num_steps=4, index=torch.tensor([3, 4]))
    torch.testing.assert_close(part.total, whole.total[3:], rtol=1e-5, atol=1e-4)
    assert denoiser.training
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    with torch.inference_mode():
        inside = exact_likelihood(denoiser, x_0 * 1.0, DiscretizedGaussian(17), num_steps=4)
    torch.testing.assert_close(inside.total, whole.total, rtol=0, atol=0)
    with pytest.raises(ValueError, match="index must have one number for each image, 5, not 2"):
        exact_likelihood(denoiser, x_0, DiscretizedGaussian(17), index=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="images must lie on the grid of levels = 17"):
        exact_likelihood(denoiser, x_0 * 0.9, DiscretizedGaussian(17))


def test_a_conditional_model_has_its_conditions():
    class Shifted(nn.Module):
        num_classes = 2
        time = "log_snr"

        def forward(self, x_t, t, label):
            return 0.5 * x_t + label[:, None, None, None]

    denoiser = Denoiser(Shifted(), LogSNRSchedule(20), X0Parametrization())
    x_0 = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    found = exact_likelihood(denoiser, x_0, GaussianDecoder(), num_steps=4, label=torch.tensor([0, 1]))
    assert float(found.total[0]) != float(found.total[1])


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (Denoiser(nn.Identity(), LinearSchedule(20), VParametrization()), "time = 't' is defined at single timesteps"),
        (
            Denoiser(continuous(nn.Identity()), LinearSchedule(100), MeanParametrization()),
            "MeanParametrization has steps",
        ),
        (
            Denoiser(continuous(nn.Identity()), LinearSchedule(20, zero_terminal_snr=True), VParametrization()),
            r"needs a finite range of log SNR, but SNR\(T\) is zero",
        ),
    ],
)
def test_what_has_no_flow(denoiser, message):
    with pytest.raises(ValueError, match=message):
        exact_likelihood(denoiser, torch.zeros(1, 1, 2, 2), GaussianDecoder())


def test_a_missing_solver(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    denoiser = Denoiser(continuous(nn.Identity()), LinearSchedule(100), EpsParametrization())
    with pytest.raises(ValueError, match=r'the exact likelihood needs torchdiffeq: pip install "lit-ddpm\[exact\]"'):
        exact_likelihood(denoiser, torch.zeros(1, 1, 2, 2), GaussianDecoder())


def test_the_rows_of_a_bound_with_the_likelihood(tmp_path):
    x_0 = mixture_images(16)
    denoiser = mixture_denoiser(LogSNRSchedule(20, log_snr_start=8.0))
    bound = variational_bound(denoiser, x_0, GaussianDecoder())
    full = exact_likelihood(denoiser, x_0, GaussianDecoder(), num_steps=16)
    coarse = Likelihood(full.flow - 0.4, full.dequantization, full.reconstruction)
    report = bound.with_likelihood(full, coarse).report()
    difference = (bound.total - full.total) / 4
    assert report.likelihood["gap"].value == pytest.approx(float(difference.mean()))
    assert report.likelihood["gap"].se_images == pytest.approx(float(difference.std()) / 4)
    assert report.terms["total"].value - report.likelihood["likelihood"].value == pytest.approx(
        report.likelihood["gap"].value
    )
    for name, column in (
        ("flow", full.flow),
        ("dequantization", full.dequantization),
        ("flow_reconstruction", full.reconstruction),
        ("likelihood", full.total),
    ):
        assert report.likelihood[name].value == pytest.approx(float(column.mean()) / 4)
    for row in ("flow, -log p(x_1)", "dequantization", "exact likelihood", "bound minus likelihood"):
        assert row in str(report)
    assert "with half the steps of the solver -0.1000" in str(report)
    metrics = report.metrics("test")
    assert metrics["test/nats_per_dim_gap"] == report.likelihood["gap"].value
    assert metrics["test/nats_per_dim_likelihood_se_images"] == report.likelihood["likelihood"].se_images
    report.save(tmp_path / "bound.json")
    assert Report.load(tmp_path / "bound.json") == report


def test_an_unmeasured_error_of_the_solver_is_not_shown():
    x_0 = mixture_images(8)
    denoiser = mixture_denoiser(LogSNRSchedule(20, log_snr_start=8.0))
    full = exact_likelihood(denoiser, x_0, GaussianDecoder(), num_steps=8)
    bound = variational_bound(denoiser, x_0, GaussianDecoder()).with_likelihood(full)
    report = bound.report()
    assert math.isnan(report.likelihood["solver_error"].value)
    assert report.likelihood["likelihood"].value == pytest.approx(float(full.total.mean()) / 4)
    assert "exact likelihood" in str(report)
    assert "half the steps" not in str(report)
