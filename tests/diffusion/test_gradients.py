"""Gradient statistics against closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lit_ddpm import (
    X0MSE,
    Denoiser,
    KLWeighting,
    LinearSchedule,
    LogSNRSchedule,
    X0Parametrization,
    kl_weight,
)
from lit_ddpm.diffusion.gradients import GradientStatistics, gradient_statistics, gradient_table, timestep_cells

SCHEDULE = LogSNRSchedule(num_steps=40, log_snr_start=6.0, log_snr_end=-5.0)


class Constant(nn.Module):
    """Estimates x_0 by its only weight, so the gradient of the x0-MSE is 2 (weight - mean of x_0)."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x_t, t):
        return self.value * torch.ones_like(x_t)


@pytest.fixture
def measured():
    torch.manual_seed(0)
    images = 0.5 * torch.randn(20, 8, 1, 2, 2)
    denoiser = Denoiser(Constant(0.4), SCHEDULE, X0Parametrization())
    return gradient_statistics(denoiser, [(batch, {}) for batch in images]), images


def test_signal_and_variance_are_those_of_the_images(measured):
    found, images = measured
    gradient = 2 * (0.4 - images.flatten(1).mean(1)).double()  # of each batch, at every t
    inner = gradient[::2].mean() * gradient[1::2].mean()
    torch.testing.assert_close(found.inner, inner.expand_as(found.inner), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.variance, (8 * gradient.var()).expand_as(found.variance), rtol=1e-4, atol=0)
    moment = found.second_moment_by_timestep()
    torch.testing.assert_close(moment, (inner + found.variance[0]).expand_as(moment), rtol=1e-4, atol=0)
    uniform = torch.ones(39, dtype=torch.float64)
    assert found.square_of_mean(uniform) == pytest.approx(float(inner), rel=1e-5)
    assert found.noise(uniform) ** 2 == pytest.approx(float(found.variance.mean()), rel=1e-4)


def test_the_optimal_density_undoes_a_weight_that_varies(measured):
    """The gradient is the same at every t, so the density is in proportion to the weight."""
    found, _ = measured
    weight = torch.linspace(1, 3, 39, dtype=torch.float64)
    uniform = torch.ones(39, dtype=torch.float64)
    torch.testing.assert_close(found.optimal_density(weight), weight / weight.sum(), rtol=1e-5, atol=0)
    signal, variance = found.inner[0, 0], found.variance[0]
    of_uniform = (weight**2).mean() * (signal + variance) - weight.mean() ** 2 * signal
    assert found.saving(weight) == pytest.approx(float(of_uniform / (weight.mean() ** 2 * variance)), rel=1e-3)
    assert found.saving(uniform) == pytest.approx(1, rel=1e-4)
    assert found.cosine(weight, uniform) == pytest.approx(1, rel=1e-5)
    one_by_timestep = torch.ones(len(found.t), dtype=torch.float64)
    torch.testing.assert_close(found.cosine_by_timestep(weight), one_by_timestep, rtol=1e-5, atol=0)


def test_the_mean_gradient_of_an_objective_is_a_weighted_sum():
    """Two orthogonal gradients: the first at small t, the second at large t."""
    t, edges = timestep_cells(9, 2)
    assert (t.tolist(), edges.tolist()) == ([2, 9], [2, 5, 10])
    found = GradientStatistics(
        t, edges, torch.diag(torch.tensor([4.0, 1.0]).double()), torch.ones(2).double(), torch.tensor(64)
    )
    moment = found.second_moment_by_timestep()
    torch.testing.assert_close(
        moment[[0, 2, 7]], torch.tensor([5, 5 * 0.4 ** (math.log(2) / math.log(4.5)), 2]).double()
    )
    weight = torch.tensor([1.0] * 3 + [2.0] * 5).double()
    torch.testing.assert_close(found.cells(weight), torch.tensor([3 / 8, 10 / 8]).double())
    torch.testing.assert_close(
        found.cosine_by_timestep(weight),
        torch.tensor([6 / 8, 10 / 8]).double() / torch.tensor(36 / 64 + 100 / 64).double().sqrt(),
    )
    early = torch.tensor([1.0] * 3 + [0.0] * 5).double()
    assert found.cosine(early, 3 * early) == pytest.approx(1)
    assert found.cosine(early, 1 - early) == pytest.approx(0)
    in_noise = replace(found, variance=torch.tensor([1.0, 64.0]).double())  # errors 1/8 and 1
    assert found.cosine(early, 3 * early) == pytest.approx(1)
    assert math.isnan(in_noise.cosine(early, 1 - early))
    assert in_noise.cosine_by_timestep(early).isnan().tolist() == [False, True]


@pytest.mark.parametrize("num_steps", [2, 3, 5, 40, 256, 1000, 10_000])
def test_cells_partition_the_timesteps(num_steps):
    t, edges = timestep_cells(num_steps)
    assert (edges[0], edges[-1]) == (2, num_steps + 1)
    assert bool((edges[:-1] <= t).all())
    assert bool((t < edges[1:]).all())
    assert bool((edges.diff() > 0).all())


def test_statistics_are_saved_and_repeated(measured, tmp_path):
    found, images = measured
    found.save(tmp_path / "gradients.npz")
    loaded = GradientStatistics.load(tmp_path / "gradients.npz")
    denoiser = Denoiser(Constant(0.4), SCHEDULE, X0Parametrization()).eval()
    again = gradient_statistics(denoiser, [(batch, {}) for batch in images])
    for name, value in vars(found).items():
        assert torch.equal(value, getattr(loaded, name))
        assert torch.equal(value, getattr(again, name))
    assert not denoiser.training


def test_batches_of_another_size_are_skipped(measured):
    _, images = measured
    batches = [(batch, {}) for batch in images[:6]]
    batches[2:2] = [(images[10][:5], {})]
    denoiser = Denoiser(Constant(0.4), SCHEDULE, X0Parametrization())
    skipped = gradient_statistics(denoiser, batches, num_batches=6)
    expected = gradient_statistics(denoiser, [(batch, {}) for batch in images], num_batches=6)
    assert torch.equal(skipped.inner, expected.inner)
    assert int(skipped.num_images) == 48


def test_the_table_has_a_row_for_each_timestep(measured):
    found, _ = measured
    denoiser = Denoiser(Constant(0.4), SCHEDULE, X0Parametrization())
    lines = gradient_table(found, denoiser, X0MSE(KLWeighting())).splitlines()
    assert lines[0].split() == ["t", "log", "SNR", "gradient", "noise", "ratio", "density"]
    rows = [line.split() for line in lines[1 : 1 + len(found.t)]]
    assert [int(row[0]) for row in rows] == found.t.tolist()
    weight = kl_weight(SCHEDULE, found.t)
    assert [float(row[2]) for row in rows] == pytest.approx((weight * found.signal).tolist(), rel=1e-3)
    assert lines[-1].startswith("uniform t needs ")


def test_a_single_batch_is_refused():
    denoiser = Denoiser(Constant(0.4), LinearSchedule(20), X0Parametrization())
    with pytest.raises(ValueError, match="at least two batches of images, not 1: set a smaller batch_size"):
        gradient_statistics(denoiser, [(torch.zeros(2, 1, 2, 2), {})])
