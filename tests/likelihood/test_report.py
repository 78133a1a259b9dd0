import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import TinyNetwork, oracle

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
from lit_ddpm.likelihood.bound import histogram_nats
from lit_ddpm.likelihood.report import TERMS, Report

DISCRETE = DiscretizedGaussian(17)


def bounds(num_timesteps=None, batches=((0, 5), (5, 8), (8, 12)), decoder=DISCRETE):
    torch.manual_seed(0)
    denoiser = Denoiser(TinyNetwork(num_steps=30), LinearSchedule(30), VParametrization())
    x_0 = torch.randint(0, 17, (12, 1, 4, 4)) / 8 - 1
    for first, last in batches:
        index = torch.arange(first, last)
        yield variational_bound(denoiser, x_0[first:last], decoder, num_timesteps, index=index)


def test_the_report_of_batches_is_that_of_all_images():
    (whole,) = bounds(batches=((0, 12),))
    report = sum(bounds()).report()
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
    (whole,), total = bounds(num_timesteps, batches=((0, 12),)), sum(bounds(num_timesteps))
    report = total.report()
    assert report.visits == whole.visits.tolist()
    assert sum(report.visits) == 12 * (num_timesteps or 30)
    torch.testing.assert_close(total.second_moment, whole.second_moment, rtol=1e-4, atol=0)
    for found, total, visits in (
        (report.kl, bits_per_dim(whole.kl, 16), whole.visits[1:]),
        (report.x0_mse, whole.squared_error, whole.visits),
    ):
        assert [value is None for value in found] == (visits == 0).tolist()
        for value, mean in zip(found, (total / visits).tolist(), strict=True):
            assert value is None or value == pytest.approx(mean, rel=1e-4)


def test_errors_of_one_image_are_unknown(tmp_path):
    (bound,) = bounds(batches=((0, 1),))
    report = bound.report()
    report.save(tmp_path / "bound.json")
    for each in (report, Report.load(tmp_path / "bound.json")):
        assert math.isfinite(each.terms["total"].value)
        assert math.isnan(each.terms["total"].se_images)
        assert "unknown" in str(each)


@pytest.mark.parametrize("num_timesteps", [None, 5, 2])
def test_the_report_of_ranks_is_that_of_all_images(num_timesteps):
    first, second, third = bounds(num_timesteps)
    expected, found = (first + second + third).report(), sum([first + third, second]).report()
    assert found.num_images == 12
    for term in TERMS:
        assert found.terms[term].value == pytest.approx(expected.terms[term].value, rel=1e-12)
        assert found.terms[term].se_images == pytest.approx(expected.terms[term].se_images, rel=1e-6, abs=1e-9)
    noise, expected_noise = found.terms["total"].se_noise, expected.terms["total"].se_noise
    assert noise == pytest.approx(expected_noise, rel=1e-9, nan_ok=True)


def test_the_table_and_the_json_agree(tmp_path):
    total = sum(bounds())
    report = total.with_columns(baseline=torch.full((12,), 16 * math.log(2) * 2.5)).report()
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
    rows = ["term", "prior", "diffusion", "reconstruction", "", "total", "with", "with", "per-pixel", "12"]
    assert names == rows


def test_errors_of_the_noise_match_the_spread_over_seeds():
    """All images are the same one, so the choice of images adds nothing to the errors."""
    denoiser, decoder = oracle(LogSNRSchedule(40, log_snr_start=3)), GaussianDecoder()
    x_0 = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4).expand(8, -1, -1, -1)
    values, errors = {term: [] for term in TERMS}, {term: [] for term in TERMS}
    for seed in range(100):
        for term, entry in variational_bound(denoiser, x_0, decoder, seed=seed).report().terms.items():
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
        nats = 16 * math.log(2) * bits
        columns = (bound.with_columns(baseline=torch.full_like(bound.prior, nats)) for bound in parts)
        baseline = sum(columns).report().baseline
        assert baseline.value == pytest.approx(bits)
        assert baseline.se_images == pytest.approx(0, abs=1e-6)
        assert baseline.se_noise == 0


@pytest.mark.parametrize("num_timesteps", [2, 3, 4, 5])
def test_the_error_of_the_noise_is_known_from_two_terms_on(num_timesteps):
    (whole,) = bounds(num_timesteps, batches=((0, 12),))
    expected = math.sqrt(whole.noise_variance() / 12) / (16 * math.log(2))
    assert math.isnan(expected) == (num_timesteps == 2)
    for bound in (whole, sum(bounds(num_timesteps))):
        assert bound.report().terms["diffusion"].se_noise == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_two_images_are_enough_for_an_error():
    (bound,) = bounds(batches=((0, 2),))
    error = float(bits_per_dim(bound.total, 16).std()) / math.sqrt(2)
    assert bound.report().terms["total"].se_images == pytest.approx(error, rel=1e-6)


def test_real_valued_data_has_no_bits():
    (whole,) = bounds(batches=((0, 12),), decoder=GaussianDecoder())
    report = sum(bounds(decoder=GaussianDecoder())).report()
    assert report.unit == "nats/dim"
    assert report.terms["total"].value == pytest.approx(float(whole.total.mean()) / 16, rel=1e-5)
    assert "bits" not in str(report)


@pytest.mark.parametrize(("decoder", "key"), [(DISCRETE, "val/bpd"), (GaussianDecoder(), "val/nats_per_dim")])
def test_keys_of_the_metrics_name_unit_term_and_error(decoder, key):
    report = sum(bounds(5, decoder=decoder)).with_columns(baseline=torch.ones(12)).report()
    errors = {f"{key}{term}_se_{of}" for term in ("", "_diffusion", "_reconstruction") for of in ("images", "noise")}
    terms = {key, *(f"{key}_{term}" for term in TERMS[:3])}
    assert set(report.metrics("val")) == {*terms, *errors, f"{key}_prior_se_images", f"{key}_histogram"}
    assert report.metrics("val")[f"{key}_histogram"] == report.baseline.value
    exact = sum(bounds(decoder=decoder)).report()
    assert set(exact.metrics("val")) == {
        *set(report.metrics("val")) - {f"{key}_histogram"},
        f"{key}_best_variance",
        f"{key}_infinite_steps",
    }


def test_a_random_part_and_the_conditions_are_named():
    (bound,) = bounds(5, batches=((0, 5),))
    text = str(replace(bound, conditioned_on=("label", "cond")).report(num_available=1200))
    assert "5 random images of 1,200, 5 random timesteps of 30 an image" in text
    assert "the bound of a conditional model: x_0 given label and cond" in text


def test_the_histogram_is_that_of_each_pixel():
    train = torch.tensor([[[[0, 1]]], [[[0, 2]]], [[[0, 2]]]])
    histogram = torch.stack([(train == level).sum(0) for level in range(3)])
    x_0 = torch.tensor([[[[0, 2]]]]) - 1.0
    # Three counts plus one for each of three levels: (3 + 1) / 6 and (2 + 1) / 6.
    assert float(histogram_nats(histogram, x_0)) == pytest.approx(-math.log(4 / 6) - math.log(3 / 6))


def test_images_of_one_index_are_refused():
    """They have one noise, so that the errors of a report would be wrong."""
    first, second = bounds(batches=((0, 5), (4, 8)))
    with pytest.raises(ValueError, match="1 images have the index of another one, and so its noise: pass the index"):
        (first + second).report()


def test_columns_have_a_value_for_each_image():
    (bound,) = bounds(batches=((0, 5),))
    for name, values in (("baseline", torch.ones(4)), ("index", torch.ones(5)), ("total", torch.ones(5))):
        with pytest.raises(ValueError, match=rf"the column {name} must be \[5\] and not named like a term"):
            bound.with_columns(**{name: values})


def test_a_report_of_another_version_is_one_sentence(tmp_path):
    (bound,) = bounds(batches=((0, 5),))
    bound.report().save(tmp_path / "bound.json")
    content = json.loads((tmp_path / "bound.json").read_text())
    (tmp_path / "bound.json").write_text(json.dumps(content | {"given": []}))
    with pytest.raises(ValueError, match="a report of another version of lit_ddpm: it has given"):
        Report.load(tmp_path / "bound.json")
