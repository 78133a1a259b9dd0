import math

import pytest
import torch
from torch.distributions import Normal

from lit_ddpm import DiscretizedGaussian, Gaussian, GaussianDecoder


def grid(levels):
    return torch.linspace(-1, 1, levels, dtype=torch.float64)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [1e-4, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.013, 0.9, 1.7])
def test_probabilities_sum_to_one(levels, std, mean):
    x = grid(levels)
    p = Gaussian(torch.full_like(x, mean), torch.tensor(std**2, dtype=torch.float64))
    log_prob = DiscretizedGaussian(levels).log_prob(x, p)
    assert bool((log_prob <= 1e-12).all())
    assert float(torch.logsumexp(log_prob, 0)) == pytest.approx(0, abs=1e-9)


def test_equals_a_difference_of_cdfs_where_that_is_accurate():
    x = grid(17)
    p = Gaussian(torch.full_like(x, 0.1), torch.tensor(0.04, dtype=torch.float64))
    cdf = Normal(0.1, 0.2).cdf
    upper, lower = cdf(x + 1 / 16), cdf(x - 1 / 16)
    upper[-1], lower[0] = 1, 0
    torch.testing.assert_close(DiscretizedGaussian(17).log_prob(x, p), (upper - lower).log(), rtol=1e-6, atol=1e-9)


def test_tails_keep_their_value_and_their_gradient():
    """Forty standard deviations out a difference of CDFs is zero; Mills' ratio at the near edge of the bin is not."""
    mean = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    x, std = grid(256)[[178]], 0.01
    log_prob = DiscretizedGaussian(256).log_prob(x, Gaussian(mean, torch.tensor(std**2, dtype=torch.float64)))
    edge = (x.item() - 1 / 255) / std
    expected = -(edge**2) / 2 - math.log(math.sqrt(2 * math.pi) * edge) - 1 / edge**2
    assert log_prob.item() == pytest.approx(expected, abs=1e-5)
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    assert gradient.item() == pytest.approx((edge + 1 / edge) / std, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(dtype):
    x = grid(17).to(dtype)
    for value in (-1e3, -1.0, 0.0, 0.06, 1.0, 1e3):
        mean = torch.full_like(x, value, requires_grad=True)
        log_prob = DiscretizedGaussian(17).log_prob(x, Gaussian(mean, torch.tensor(1e-2, dtype=dtype)))
        (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(gradient).all()


def test_gaussian_decoder_is_the_density():
    x, mean = torch.randn(2, 9, dtype=torch.float64)
    var = torch.tensor(0.3, dtype=torch.float64)
    expected = Normal(mean, var.sqrt()).log_prob(x)
    torch.testing.assert_close(GaussianDecoder().log_prob(x, Gaussian(mean, var)), expected)


def test_data_outside_the_levels_is_refused():
    decoder = DiscretizedGaussian(17)
    decoder.check(grid(17).float())
    with pytest.raises(ValueError, match=r"\[-1, 1\].*range is -1 to 1.5"):
        decoder.check(torch.tensor([-1.0, 1.5]))
    with pytest.raises(ValueError, match=r"\[-1, 1\].*range is -1.5 to 1"):
        decoder.check(torch.tensor([-1.5, 1.0]))
    with pytest.raises(ValueError, match=r"levels = 17 .* 0.05 is not one"):
        decoder.check(torch.tensor([0.05, 0.0]))
    for each in (decoder, GaussianDecoder()):
        with pytest.raises(ValueError, match="finite"):
            each.check(torch.tensor([0.0, float("nan")]))
    GaussianDecoder().check(torch.tensor([17.3]))
    for levels in (1, 17.0, True):
        with pytest.raises(
            ValueError, match=f"levels = {levels}: a DiscretizedGaussian needs an integer of at least 2"
        ):
            DiscretizedGaussian(levels)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_values_between_two_levels_are_refused(levels):
    decoder = DiscretizedGaussian(levels)
    decoder.check(grid(levels))
    for fraction in (0.05, 0.25, 0.5, 0.75):
        with pytest.raises(ValueError, match=f"levels = {levels} values"):
            decoder.check(grid(levels)[:1] + fraction * 2 / (levels - 1))


def test_pixels_have_256_levels_by_default():
    assert DiscretizedGaussian().levels == 256
