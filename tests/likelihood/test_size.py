"""The numbers of images and timesteps that a precision needs."""

import math

import pytest
import torch
from helpers import tiny_denoiser

from lit_ddpm import DiscretizedGaussian, variational_bound
from lit_ddpm.likelihood.size import PILOT_CALLS, random_order, smallest_size, smallest_test


def test_the_fewest_calls_for_a_standard_error():
    """Against a search over all pairs, with the variance of the pilot at its upper limit: 1.1795 for 64 images."""
    for target_se, available in ((0.02, 800), (0.01, 700), (0.05, 800)):
        size = smallest_size(0.04, 0.9, 64, target_se, available, num_steps=256)
        possible = [
            (n * calls, n, calls)
            for n in range(2, available + 1)
            for calls in range(2, 257)
            if 1.1795 * (0.04 + 0.9 / (calls - 1)) / n <= target_se**2
        ]
        cost, *_ = min(possible)
        assert size.num_images * size.num_timesteps == pytest.approx(cost, rel=0.01)
        assert 1.1795 * (0.04 + 0.9 / (size.num_timesteps - 1)) / size.num_images <= 1.0001 * target_se**2


def test_a_test_has_at_least_two_kl_terms():
    """The variance of a single one, which has no strata, does not follow from that of the pilot."""
    assert smallest_size(0.1, 0.04, 64, 0.02, 800, num_steps=100).num_timesteps == 3
    assert smallest_size(0.1, 0.04, 64, 0.02, 800, num_steps=2).num_timesteps == 2


def images(count=400):
    return torch.randint(0, 17, (count, 1, 4, 4), generator=torch.Generator().manual_seed(2)) / 8 - 1


def test_a_loop_without_lightning_meets_the_target():
    """The standard error of the chosen test is at most the target, within the error of the pilot."""
    denoiser, x_0, decoder = tiny_denoiser(), images(), DiscretizedGaussian(17)

    def bound(rows, num_timesteps):
        return variational_bound(denoiser, x_0[rows], decoder, num_timesteps, index=rows)

    order = random_order(len(x_0))
    pilot = bound(order[:64], PILOT_CALLS)
    target = 1.5 * pilot.report().terms["total"].se_images * math.sqrt(64 / len(x_0))
    size = smallest_test(pilot, target, len(x_0))
    assert size.num_images * size.num_timesteps < 0.7 * len(x_0) * 40
    batches = order[: size.num_images].split(50)
    report = sum(bound(rows, size.num_timesteps) for rows in batches).report(len(x_0))
    assert (report.num_images, report.num_calls) == size
    assert report.terms["total"].se_images < 1.1 * target
    assert f"{size.num_images} random images of 400" in str(report)
    exact = bound(order, None).report()
    assert abs(report.terms["total"].value - exact.terms["total"].value) < 4 * target


def test_the_variances_of_a_pilot_are_those_of_its_bound():
    """The variance over images excludes the noise, and the noise is that of one KL term."""
    pilot = variational_bound(tiny_denoiser(), images(64), DiscretizedGaussian(17), 8)
    noise = pilot.noise_variance() * pilot.scale**2
    total = float(pilot.total.var()) * pilot.scale**2
    for target_se in (0.3, 0.6):
        expected = smallest_size(total - noise, 7 * noise, 64, target_se, 800, num_steps=40)
        assert smallest_test(pilot, target_se, 800) == expected


def test_an_unattainable_target_names_the_least():
    with pytest.raises(
        ValueError, match=r"target_se = 1e-06 is unattainable: all 800 images .* 100 timesteps give"
    ) as e:
        smallest_size(0.1, 0.04, 64, 1e-6, 800, num_steps=100)
    assert str(e.value).endswith(f"about {math.sqrt((0.1 + 0.04 / 99) / 800):.2g}.")


def test_the_order_of_images_is_a_random_one_of_the_seed():
    assert random_order(50).sort().values.tolist() == list(range(50))
    assert torch.equal(random_order(50, 0), random_order(50))
    assert not torch.equal(random_order(50, 1), random_order(50))
    assert random_order(50)[:10].max() > 10
