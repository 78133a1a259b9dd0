import json
import math

import pytest
import torch
from helpers import TinyNetwork

from lit_ddpm import Denoiser, DiscretizedGaussian, LinearSchedule, VParametrization, bits_per_dim, variational_bound
from lit_ddpm.diffusion.ledger import TERMS, Ledger, histogram_nats


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
    report.save(tmp_path / "new" / "ledger.json")
    saved = json.loads((tmp_path / "new" / "ledger.json").read_text())
    assert saved["terms"]["total"]["value"] == report.terms["total"].value
    assert saved["baseline"]["value"] == pytest.approx(2.5)
    table = report.table()
    for text in (f"{report.terms['total'].value:.4f}", "± images", "± noise", "2.5000", "12 images, 30 network calls"):
        assert text in table


def test_real_valued_data_has_no_bits():
    ledger = Ledger(30, 30, discrete=False)
    for bound in bounds():
        ledger.update(bound)
    assert ledger.report().unit == "nats/dim"
    assert "bits" not in ledger.report().table()


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="no images"):
        Ledger(30, 30).report()


def test_the_histogram_is_that_of_each_pixel():
    train = torch.tensor([[[[0, 1]]], [[[0, 2]]], [[[0, 2]]]])
    histogram = torch.stack([(train == level).sum(0) for level in range(3)])
    x_0 = torch.tensor([[[[0, 2]]]]) - 1.0
    # Three counts plus one for each of three levels: (3 + 1) / 6 and (2 + 1) / 6.
    assert float(histogram_nats(histogram, x_0)) == pytest.approx(-math.log(4 / 6) - math.log(3 / 6))
