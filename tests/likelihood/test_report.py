import json
import math

import pytest
import torch
from helpers import TinyNetwork, oracle
from lit_ddpm.diffusion.ledger import Ledger, histogram_nats

from lit_ddpm import (
    Denoiser,
    DiscretizedGaussian,
    GaussianDecoder,
    LinearSchedule,
    LogSNRSchedule,
    VParametrization,
    bits_per_dim,
    variational_bound,
)
from lit_ddpm.likelihood.bound import noise_variance
from lit_ddpm.likelihood.report import TERMS, Report


def bounds(num_timesteps=None, batches=((0, 5), (5, 8), (8, 12))):
    torch.manual_seed(0)
    denoiser = Denoiser(TinyNetwork(num_steps=30), LinearSchedule(30), VParametrization())
    x_0 = torch.randint(0, 17, (12, 1, 4, 4)) / 8 - 1
    for first, last in batches:
        index = torch.arange(first, last)
        yield variational_bound(denoiser, x_0[first:last], DiscretizedGaussian(17), num_timesteps, index=index)


def test_the_report_of_batches_is_that_of_all_images():
    ledger, (whole,) = Ledger(30, 30), bounds(batches=((0, 12),))
    for bound in bounds():
        ledger.update(bound)
    report = ledger.report()
    for term in TERMS:
        bits = bits_per_dim(getattr(whole, term), 16)
        assert report.terms[term].value == pytest.approx(float(bits.mean()), abs=1e-5)
        assert report.terms[term].se_images == pytest.approx(float(bits.std()) / math.sqrt(12), rel=1e-3, abs=1e-6)
    parts = sum(report.terms[term].value for term in TERMS[:3])
    assert report.terms["total"].value == pytest.approx(parts, rel=1e-12)
    assert sum(report.profile) == pytest.approx(report.terms["diffusion"].value, rel=1e-9)
    assert (report.num_images, report.num_calls, report.unit) == (12, 30, "bits/dim")
    assert report.baseline is None


@pytest.mark.parametrize("num_timesteps", [None, 5])
def test_means_at_each_timestep_are_over_its_calls(num_timesteps):
    ledger, (whole,) = Ledger(30, num_timesteps or 30), bounds(num_timesteps, batches=((0, 12),))
    for bound in bounds(num_timesteps):
        ledger.update(bound)
    report = ledger.report()
    assert report.visits == whole.visits.tolist()
    assert sum(report.visits) == 12 * (num_timesteps or 30)
    torch.testing.assert_close(ledger.second_moment(), whole.second_moment, rtol=1e-4, atol=0)
    for found, total, visits in (
        (report.kl, bits_per_dim(whole.kl, 16), whole.visits[1:]),
        (report.x0_mse, whole.squared_error, whole.visits),
    ):
        assert [value is None for value in found] == (visits == 0).tolist()
        for value, mean in zip(found, (total / visits).tolist(), strict=True):
            assert value is None or value == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("num_timesteps", [2, 3, 4, 5, 30])
def test_ranks_with_and_without_images_have_sums_of_one_shape(num_timesteps):
    shapes = []
    for batches in ((), ((0, 5),)):
        ledger, seen = Ledger(30, num_timesteps), []
        for bound in bounds(num_timesteps, batches):
            ledger.update(bound)
        ledger.reduce(lambda sums, seen=seen: seen.append(sums.shape) or sums)
        shapes.append(seen)
    assert shapes[0] == shapes[1]


def test_errors_of_one_image_are_unknown(tmp_path):
    ledger = Ledger(30, 30)
    for bound in bounds(batches=((0, 1),)):
        ledger.update(bound)
    report = ledger.report()
    report.save(tmp_path / "bound.json")
    for each in (report, Report.load(tmp_path / "bound.json")):
        assert math.isfinite(each.terms["total"].value)
        assert math.isnan(each.terms["total"].se_images)
        assert "unknown" in str(each)


def test_ranks_add_up_even_if_one_has_no_images():
    for num_timesteps, calls in ((None, 30), (5, 5), (2, 2)):
        alone, shares = Ledger(30, calls), [Ledger(30, calls), Ledger(30, calls), Ledger(30, calls)]
        for i, bound in enumerate(bounds(num_timesteps)):
            alone.update(bound)
            shares[i % 2].update(bound)
        totals = [sum(values) for values in zip(*(share._sums.values() for share in shares), strict=True)]
        for share in shares:
            each = iter(totals)
            share.reduce(lambda _, each=each: next(each))
            found, expected = share.report(), alone.report()
            assert found.num_images == 12
            for term in TERMS:
                assert found.terms[term].value == pytest.approx(expected.terms[term].value, rel=1e-12)
                assert found.terms[term].se_images == pytest.approx(expected.terms[term].se_images, rel=1e-6, abs=1e-9)
            noise, expected_noise = found.terms["total"].se_noise, expected.terms["total"].se_noise
            assert noise == pytest.approx(expected_noise, rel=1e-9, nan_ok=True)


def test_the_table_and_the_json_agree(tmp_path):
    ledger = Ledger(30, 30)
    for bound in bounds():
        ledger.update(bound, baseline=torch.full((len(bound.prior),), 16 * math.log(2) * 2.5))
    report = ledger.report()
    report.save(tmp_path / "new" / "bound.json")
    saved = json.loads((tmp_path / "new" / "bound.json").read_text())
    assert saved["terms"]["total"]["value"] == report.terms["total"].value
    assert saved["baseline"]["value"] == pytest.approx(2.5)
    table = str(report)
    for text in (f"{report.terms['total'].value:.4f}", "± images", "± noise", "2.5000", "12 images, 30 network calls"):
        assert text in table
    assert "unknown" not in table
    assert Report.load(tmp_path / "new" / "bound.json") == report
    names = [line.split()[0].rstrip("-") for line in table.splitlines()]
    assert names == ["term", "prior", "diffusion", "reconstruction", "", "total", "per-pixel", "12"]


def test_errors_of_the_noise_match_the_spread_over_seeds():
    """All images are the same one, so the choice of images adds nothing to the errors."""
    denoiser, decoder = oracle(LogSNRSchedule(40, log_snr_start=3)), GaussianDecoder()
    x_0 = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4).expand(8, -1, -1, -1)
    values, errors = {term: [] for term in TERMS}, {term: [] for term in TERMS}
    for seed in range(100):
        ledger = Ledger(40, 40, discrete=False)
        ledger.update(variational_bound(denoiser, x_0, decoder, seed=seed))
        for term, entry in ledger.report().terms.items():
            values[term].append(entry.value)
            errors[term].append(entry.se_noise**2)
    for term in ("diffusion", "reconstruction", "total"):
        spread = torch.tensor(values[term]).std().item()
        assert (sum(errors[term]) / 100) ** 0.5 == pytest.approx(spread, rel=0.2), term
    assert errors["prior"] == [0.0] * 100


def test_a_constant_baseline_has_no_error():
    """Rounding makes the mean of the squares less than the square of the mean for a few of these values."""
    parts = list(bounds(2))
    for bits in torch.linspace(0.1, 3, 200).tolist():
        ledger = Ledger(30, 2)
        for bound in parts:
            ledger.update(bound, baseline=torch.full((len(bound.prior),), 16 * math.log(2) * bits))
        baseline = ledger.report().baseline
        assert baseline.value == pytest.approx(bits)
        assert baseline.se_images == pytest.approx(0, abs=1e-6)
        assert baseline.se_noise == 0


@pytest.mark.parametrize("num_timesteps", [2, 3, 4, 5])
def test_the_error_of_the_noise_is_known_from_two_terms_on(num_timesteps):
    ledger, (whole,) = Ledger(30, num_timesteps), bounds(num_timesteps, batches=((0, 12),))
    for bound in bounds(num_timesteps):
        ledger.update(bound)
    variance = noise_variance(whole.differences, whole.squared_differences, 12)
    expected = math.sqrt(variance / 12) / (16 * math.log(2))
    assert math.isnan(expected) == (num_timesteps == 2)
    assert ledger.report().terms["diffusion"].se_noise == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_two_images_are_enough_for_an_error():
    ledger, (bound,) = Ledger(30, 30), bounds(batches=((0, 2),))
    ledger.update(bound)
    error = float(bits_per_dim(bound.total, 16).std()) / math.sqrt(2)
    assert ledger.report().terms["total"].se_images == pytest.approx(error, rel=1e-6)


def test_real_valued_data_has_no_bits():
    ledger = Ledger(30, 30, discrete=False)
    (whole,) = bounds(batches=((0, 12),))
    for bound in bounds():
        ledger.update(bound)
    assert ledger.report().unit == "nats/dim"
    assert ledger.report().terms["total"].value == pytest.approx(float(whole.total.mean()) / 16, rel=1e-5)
    assert "bits" not in str(ledger.report())


@pytest.mark.parametrize(("discrete", "key"), [(True, "val/bpd"), (False, "val/nats_per_dim")])
def test_keys_of_the_metrics_name_unit_term_and_error(discrete, key):
    ledger = Ledger(30, 30, discrete)
    for bound in bounds():
        ledger.update(bound, baseline=torch.ones(len(bound.prior)))
    report = ledger.report()
    errors = {f"{key}{term}_se_{of}" for term in ("", "_diffusion", "_reconstruction") for of in ("images", "noise")}
    terms = {key, *(f"{key}_{term}" for term in TERMS[:3])}
    assert set(report.metrics("val")) == {*terms, *errors, f"{key}_prior_se_images", f"{key}_histogram"}
    assert report.metrics("val")[f"{key}_histogram"] == report.baseline.value


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="no images"):
        Ledger(30, 30).report()


def test_the_histogram_is_that_of_each_pixel():
    train = torch.tensor([[[[0, 1]]], [[[0, 2]]], [[[0, 2]]]])
    histogram = torch.stack([(train == level).sum(0) for level in range(3)])
    x_0 = torch.tensor([[[[0, 2]]]]) - 1.0
    # Three counts plus one for each of three levels: (3 + 1) / 6 and (2 + 1) / 6.
    assert float(histogram_nats(histogram, x_0)) == pytest.approx(-math.log(4 / 6) - math.log(3 / 6))
