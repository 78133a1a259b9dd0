import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import DIGITS_CONFIG, SMALL_NETWORK

from lit_ddpm import LinearSchedule, kl_weight
from lit_ddpm.compare import Comparison, Measurement, Plan
from lit_ddpm.compare.comparison import is_bound, text_of
from lit_ddpm.compare.summary import summary
from lit_ddpm.compare.variants import resolve_variants


def of_seeds(*values):
    return Measurement(np.array(values, dtype=float))


def of_images(mean, *, count=100, noise=0.0):
    """One seed, with images whose values differ much more than those of two models."""
    rng = np.random.default_rng(0)
    images = 10 * rng.standard_normal(count)
    images += mean - images.mean() + noise * np.linspace(-1, 1, count)
    return Measurement(np.array([mean]), images[None])


def plan(variants=()):
    return Plan(Path("none"), "", list(variants), 1, {})


def comparison(results=("a", "b")):
    return Comparison(plan(), {name: [] for name in results})


def test_leaders_of_a_column_are_significant():
    leaders = comparison().leaders
    clear = {"a": of_seeds(1.0, 1.1, 0.9), "b": of_seeds(2.0, 2.2, 1.9)}
    assert leaders("bits/dim", clear) == {"a"}
    assert leaders("is_digits", clear) == {"b"}
    tie = clear | {"c": of_seeds(1.1, 0.95, 1.0)}
    assert leaders("bits/dim", tie) == {"a", "c"}
    two_seeds = {name: of_seeds(*value.seeds[:2]) for name, value in clear.items()}
    assert leaders("bits/dim", two_seeds) == {"a"}  # 1.0 and 1.1 less: the pairs agree
    assert leaders("bits/dim", {"a": of_seeds(1.0, 2.0), "b": of_seeds(2.0, 5.0)}) == set()
    assert leaders("fid", {"a": of_seeds(1.0), "b": of_seeds(2.0)}) == set()  # one seed has no error
    assert leaders("prior", {"a": of_seeds(1.0, 1.0), "b": of_seeds(1.0, 1.0)}) == set()


def test_pairing_finds_what_the_images_hide():
    a, b = of_images(1.8), of_images(1.9, noise=0.3)
    assert a.error == pytest.approx(1.0, rel=0.2)
    assert (b - a).mean == pytest.approx(0.1)
    assert (b - a).error == pytest.approx(0.0175, rel=0.02)  # 0.3 sqrt(1/3) / 10
    assert comparison().leaders("bits/dim", {"a": a, "b": b}) == {"a"}
    unpaired = Measurement(b.seeds, b.images[:, :50])
    assert math.isnan((unpaired - a).error)


@pytest.mark.parametrize("effects", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 1.0, 2.0)])
def test_the_error_is_that_over_new_seeds_and_new_images(effects):
    """Against the variance of the mean in repeated experiments with effects of seed, image and both."""
    rng = np.random.default_rng(0)
    of_seed, of_image, of_both = effects
    means, variances = [], []
    for _ in range(2000):
        images = of_seed * rng.standard_normal((5, 1)) + of_image * rng.standard_normal((1, 20))
        images = images + of_both * rng.standard_normal((5, 20))
        measured = Measurement(images.mean(1), images)
        means.append(measured.mean)
        variances.append(measured.error**2)
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.12 if of_both < 1 else 0.6)
    assert np.mean(variances) > 0.9 * np.var(means)  # the largest part alone is never less


def test_the_test_has_the_quantile_of_student():
    """For three seeds 4.303, for 400 images 1.966."""
    for measured, quantile in (
        (of_seeds(-1.0, 0.0, 1.0), 4.303),
        (Measurement(np.zeros(1), np.random.default_rng(0).standard_normal((1, 400))), 1.966),
    ):
        error = measured.error
        for factor, significant in ((0.99, False), (1.01, True)):
            shift = factor * quantile * error
            shifted = Measurement(measured.seeds - measured.mean + shift, measured.images)
            assert shifted.is_positive() == significant


def test_a_sentence_says_who_wins_and_by_how_much(monkeypatch):
    columns = {
        "bits/dim": {"a": of_images(1.9, noise=0.3), "b": of_images(1.8), "c": of_images(1.8001, noise=0.3)},
        "fid_digits": {"a": of_seeds(8.0), "b": of_seeds(9.5), "c": of_seeds(20.0)},
    }
    monkeypatch.setattr(Comparison, "measurements", lambda self: columns)
    monkeypatch.setattr(Comparison, "total", "bits/dim")
    assert summary(comparison(("a", "b", "c"))) == {
        "a": "bits/dim 1.9, 0.100 ± 0.018 behind b; fid_digits 8, the best, 1.5 ahead of b.",
        "b": "bits/dim 1.8, the best, 0.000 ± 0.018 ahead of c; fid_digits 9.5, 1.5 behind a.",
        "c": "bits/dim 1.8, 0.000 ± 0.018 behind b; fid_digits 20, 12 behind a.",
    }


def test_a_factor_that_does_not_increase_with_log_snr_is_a_bound():
    schedule = LinearSchedule(num_steps=50)
    t = torch.arange(2, 51)
    bound = kl_weight(schedule, t)
    assert is_bound(torch.ones(49))
    assert is_bound(1 / bound)  # the plain x0-MSE
    assert is_bound(bound / bound * (1 + 1e-9 * torch.randn(49)))
    assert not is_bound(schedule.snr(t) / bound)  # L_simple
    assert not is_bound(torch.linspace(1, 0.99, 49))


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (1.83742, 0.0128, "1.837 ± 0.013"),
        (12345.6, 210.0, "12,346 ± 210"),
        (0.0530026, 0.0000161, "0.053003 ± 0.000016"),
        (12.3591, math.nan, "12.36"),
    ],
)
def test_a_value_is_printed_to_two_digits_of_its_error(mean, error, text):
    measured = types.SimpleNamespace(mean=mean, error=error)
    assert text_of(measured) == text
    assert text_of(measured, signed=True) == f"+{text}"
    assert text_of(None) == "—"


@pytest.mark.parametrize(
    ("objective", "bound"),
    [
        ("kl", True),
        ("sigmoid", True),
        ("flow_matching", True),
        ("edm", False),
        ("simple", False),
        ("min_snr", False),
        ("p2", False),
        ("x0_mse", True),
    ],
)
def test_the_bounds_among_the_objectives_on_a_cosine_schedule(objective, bound):
    """The column of the table in docs/objectives.md; without the last step, whose beta is capped."""
    overrides = [
        "--model.schedule=CosineSchedule",
        "--model.schedule.num_steps=400",
        "--model.network.time=t",
        *SMALL_NETWORK,
    ]
    variants = resolve_variants([DIGITS_CONFIG], [objective], overrides)
    ((_, factor),) = Comparison(plan(variants), {}).factors().values()
    assert is_bound(factor[:-1]) == bound
