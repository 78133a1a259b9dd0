"""Bounds that add up."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import tiny_denoiser

from lit_ddpm import DiscretizedGaussian, GaussianDecoder, bits_per_dim, variational_bound
from lit_ddpm._internal.files import read_arrays
from lit_ddpm.likelihood.bound import DECODER_SCALES, ROWS, SUMS, noise_variance


def digits_like(count):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 17, (count, 1, 4, 4), generator=generator) / 8 - 1


def parts(num_timesteps=None, batches=((0, 5), (5, 8), (8, 12)), columns=False):
    """Bounds of 12 images in batches, by the index of their first and of the one after their last."""
    denoiser, x_0 = tiny_denoiser(), digits_like(12)
    for first, last in batches:
        index = torch.arange(first, last)
        bound = variational_bound(denoiser, x_0[first:last], DiscretizedGaussian(17), num_timesteps, index=index)
        yield bound.with_columns(baseline=index + 1.0) if columns else bound


@pytest.mark.parametrize("num_timesteps", [2, 3, 4, 5, 40, None])
def test_bounds_of_batches_add_up_to_that_of_all_images(num_timesteps):
    (whole,) = parts(num_timesteps, batches=((0, 12),))
    total = sum(parts(num_timesteps))
    assert total.index.tolist() == list(range(12))
    for name in (*ROWS, *SUMS):
        found, expected = getattr(total, name), getattr(whole, name)
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * largest)
    for name in ("dims", "num_calls", "num_steps", "discrete", "conditioned_on", "scale"):
        assert getattr(total, name) == getattr(whole, name)
    for name in ("profile", "second_moment"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-4, atol=1e-9)
    assert total.noise_variance() == pytest.approx(whole.noise_variance(), rel=1e-3, nan_ok=True)
    assert float(total.profile.sum()) == pytest.approx(float(total.diffusion.mean()), rel=1e-12)


def test_a_sum_has_the_rows_and_sums_of_both():
    a, b, _ = parts(5, columns=True)
    for name in ROWS:
        assert torch.equal(getattr(a + b, name), torch.cat([getattr(a, name), getattr(b, name)]))
    for name in SUMS:
        assert torch.equal(getattr(a + b, name), getattr(a, name) + getattr(b, name))
    assert (a + b).columns["baseline"].tolist() == [float(i + 1) for i in range(8)]
    assert torch.equal((a + b).total, torch.cat([a.total, b.total]))
    assert len(a.index) == 5  # unchanged


@pytest.mark.parametrize("num_timesteps", [None, 5])
def test_addition_is_associative_and_its_order_does_not_matter(num_timesteps, tmp_path):
    a, b, c = parts(num_timesteps, columns=True)
    reports = [bound.report() for bound in ((a + b) + c, a + (b + c), c + a + b)]
    for report in reports[1:]:
        for term, entry in report.terms.items():
            expected = reports[0].terms[term]
            assert (entry.value, entry.se_images) == pytest.approx((expected.value, expected.se_images), rel=1e-9)
            assert entry.se_noise == pytest.approx(expected.se_noise, rel=1e-9)
        assert report.visits == reports[0].visits
        assert report.best_variance == pytest.approx(reports[0].best_variance)
    rows = []
    for number, bound in enumerate((a + b + c, c + b + a)):
        bound.save(tmp_path / f"{number}.npz")
        rows.append(read_arrays(tmp_path / f"{number}.npz"))
    assert rows[0].keys() == rows[1].keys() == {"index", "prior", "diffusion", "reconstruction", "total", "baseline"}
    assert rows[0]["index"].tolist() == list(range(12))
    for name, values in rows[0].items():
        assert (values == rows[1][name]).all()
    bits = bits_per_dim((a + b + c).total, 16)
    assert rows[0]["total"].tolist() == pytest.approx(bits.tolist(), rel=1e-12)


def test_bounds_with_other_settings_do_not_add_up():
    denoiser, x_0, decoder = tiny_denoiser(), digits_like(2), DiscretizedGaussian(17)
    bound = variational_bound(denoiser, x_0, decoder, 5)
    wide = torch.cat([x_0, x_0], dim=3)
    for other, message in (
        (variational_bound(denoiser, x_0, decoder, 6), "num_calls = 5 and 6"),
        (variational_bound(denoiser, wide, decoder, 5), "dims = 16 and 32"),
        (variational_bound(denoiser, x_0, GaussianDecoder(), 5), "discrete = True and False"),
        (variational_bound(tiny_denoiser(50), x_0, decoder, 5), "num_steps = 40 and 50"),
        (replace(bound, conditioned_on=("label",)), r"conditioned_on = \(\) and \('label',\)"),
        (bound.with_columns(baseline=torch.ones(2)), "of other schedules or with other columns"),
        (replace(bound, kl_weight=bound.kl_weight * 2), "of other schedules or with other columns"),
    ):
        for a, b in ((bound, other), (other, bound)):
            with pytest.raises(ValueError, match=r"bounds .*cannot be added"):
                a + b
        with pytest.raises(ValueError, match=message):
            bound + other
    for number in (1, 1.0, "bound"):
        with pytest.raises(TypeError):
            number + bound
        with pytest.raises(TypeError):
            bound + number


def test_what_a_denoiser_learns_from_a_bound():
    (bound,) = parts(batches=((0, 12),))
    torch.testing.assert_close(bound.x0_mse(), bound.squared_error / 12)
    best = int(bound.reconstruction_by_scale.argmin())
    assert bound.decoder_scale() == float(DECODER_SCALES[best])
    assert float(bound.reconstruction_by_scale.min()) <= float(bound.reconstruction.sum())


def test_noise_variance_of_each_number_of_images_is_unbiased():
    for num_images in (2, 3, 50):
        x = torch.randn(num_images, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = noise_variance(x.mean(0), (x**2).mean(0).sum(), num_images)
        assert found == pytest.approx(float(x.var(0).sum()), rel=1e-12)
    assert math.isnan(noise_variance(torch.ones(4), torch.tensor(4.0), 1))
    for rounding in (0, 1e-12):
        assert noise_variance(torch.ones(4), torch.tensor(4 - rounding, dtype=torch.float64), 2) == 0


def test_bits_per_dim():
    assert float(bits_per_dim(torch.tensor(math.log(2.0) * 64), dims=64)) == pytest.approx(1)
