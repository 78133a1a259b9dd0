import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.defaults import DEFAULTS

from lit_ddpm.metrics.fid import RealStatistics, sample_metrics


def exactly_normal(count, mean, std, seed):
    """Features whose sample mean and sample covariance are exactly ``mean`` and ``diag(std^2)``."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x -= x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1)).T)
    return x * torch.tensor(std) + torch.tensor(mean)


def test_fid_of_normal_features_is_the_closed_form():
    real = exactly_normal(500, [0.0, 1.0, 2.0], [1.0, 2.0, 0.5], seed=0)
    generated = exactly_normal(300, [1.0, 1.0, 0.0], [3.0, 2.0, 1.0], seed=1)
    expected = (1 + 0 + 4) + (2**2 + 0 + 0.5**2)  # |m - m'|^2 + sum (s - s')^2
    found = sample_metrics(RealStatistics.of_features(real), generated, kid_subset_size=100)
    assert found["fid"] == pytest.approx(expected, rel=1e-9)
    assert "is" not in found


def test_halves_give_the_error_and_the_bias_of_the_fid():
    """Against the spread over sets of samples, and the value without the bias, which is known."""
    generator = torch.Generator().manual_seed(0)
    real = RealStatistics.of_features(exactly_normal(500, [0.0] * 6, [1.0] * 6, seed=0))
    sets = [1.5 * torch.randn(100, 6, dtype=torch.float64, generator=generator) + 0.5 for _ in range(40)]
    found = [sample_metrics(real, features, kid_subsets=1, kid_subset_size=10, fid_halves=20) for features in sets]
    fids, errors, infinite = (np.array([values[key] for values in found]) for key in ("fid", "fid_se", "fid_infinite"))
    expected = 6 * 0.5**2 + 6 * (1.5 - 1) ** 2
    assert errors.mean() == pytest.approx(fids.std(ddof=1), rel=0.25)
    assert fids.mean() - expected > 3 * fids.std() / 40**0.5
    assert abs(infinite.mean() - expected) < 3 * infinite.std() / 40**0.5
    assert np.isnan(sample_metrics(real, sets[0][:3], kid_subset_size=2, fid_halves=5)["fid_se"])
    assert "fid_se" not in sample_metrics(real, sets[0], kid_subset_size=10)
    assert np.isnan(sample_metrics(real, sets[0] * torch.nan, fid_halves=2)["fid_infinite"])


def test_kid_of_one_subset_is_the_unbiased_estimate():
    generator = np.random.default_rng(0)
    real, generated = generator.normal(size=(30, 4)), generator.normal(0.5, 1, size=(30, 4))

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    pairs = [(i, j) for i in range(30) for j in range(30)]
    within = sum(kernel(x[i], x[j]) for x in (real, generated) for i, j in pairs if i != j) / (30 * 29)
    between = 2 * sum(kernel(real[i], generated[j]) for i, j in pairs) / 30**2
    found = sample_metrics(
        RealStatistics.of_features(torch.tensor(real)), torch.tensor(generated), kid_subsets=1, kid_subset_size=30
    )
    assert found["kid"] == pytest.approx(within - between, rel=1e-10)
    assert found["kid_std"] == 0


def test_is_counts_the_classes():
    real = RealStatistics.of_features(torch.randn(50, 2))
    for classes in (1, 7):
        logits = 100.0 * torch.nn.functional.one_hot(torch.arange(70) % classes, 10)
        found = sample_metrics(real, torch.randn(70, 2), logits, kid_subset_size=10, is_splits=1)
        assert found["is"] == pytest.approx(classes, rel=1e-6)


def test_metrics_depend_on_their_seed_only():
    generator = torch.Generator().manual_seed(0)
    real = RealStatistics.of_features(torch.randn(50, 3, generator=generator))
    features, logits = torch.randn(40, 3, generator=generator), torch.randn(40, 5, generator=generator)
    before = torch.get_rng_state()
    first, again, other = (
        sample_metrics(real, features, logits, kid_subsets=5, kid_subset_size=20, is_splits=4, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first["kid"] != other["kid"]
    assert first["is"] != other["is"]
    assert first["fid"] == other["fid"]


def test_the_protocol_is_that_of_torch_fidelity():
    defaults = {name: p.default for name, p in inspect.signature(sample_metrics).parameters.items()}
    for ours, theirs in (("kid_subsets",) * 2, ("kid_subset_size",) * 2, ("is_splits", "isc_splits")):
        assert defaults[ours] == DEFAULTS[theirs]
    assert defaults["seed"] == 0


def test_ranks_do_not_communicate(monkeypatch):
    """Only one rank computes the metrics, so a collective operation would wait forever."""

    def fail(*args, **kwargs):
        raise AssertionError("a collective operation")

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    for name in ("barrier", "all_gather", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, fail)
    real, generated = RealStatistics.of_features(torch.randn(50, 2)), torch.randn(40, 2)
    found = sample_metrics(real, generated, torch.randn(40, 5), kid_subsets=2, kid_subset_size=20, is_splits=2)
    assert math.isfinite(found["fid"])


def test_nonfinite_features_give_nan():
    features = torch.randn(40, 3)
    features[7, 1] = math.nan
    found = sample_metrics(RealStatistics.of_features(torch.randn(50, 3)), features, torch.randn(40, 5))
    assert set(found) == {"fid", "kid", "kid_std", "is"}
    assert all(math.isnan(value) for value in found.values())


def test_float32_features_far_from_zero_lose_nothing():
    """Sums of squares of 100 +- 0.01 in float32 would lose the covariance entirely."""
    real, generated = (100 + 0.01 * exactly_normal(200, [0.0, 0.0], [1.0, 1.0], seed).float() for seed in (0, 1))
    found = sample_metrics(RealStatistics.of_features(real), generated, kid_subset_size=100)
    assert found["fid"] == pytest.approx(0, abs=1e-7)


ORIGIN = {"data": "digits", "split": "train", "extractor": "e (1)"}


def test_statistics_are_saved_and_loaded():
    real = RealStatistics.of_features(torch.randn(20, 3))
    path = Path("deep/er/file.safetensors")
    real.save(path, ORIGIN)
    read = RealStatistics.load(path, ORIGIN)
    assert read.num_images == 20
    for name in ("total", "products", "features"):
        assert torch.equal(getattr(read, name), getattr(real, name))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_foreign_and_damaged_statistics_are_refused():
    path = Path("file.safetensors")
    RealStatistics.of_features(torch.randn(20, 3)).save(path, ORIGIN)
    with pytest.raises(
        ValueError, match=r"file\.safetensors .*another split, extractor; remove the file, or set anoth"
    ):
        RealStatistics.load(path, {**ORIGIN, "split": "test", "extractor": "e (2)"})
    whole = path.read_bytes()
    for damaged in (whole[:-10], b"", b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"file\.safetensors .*cannot be read"):
            RealStatistics.load(path, ORIGIN)
    torch.save({"fid": 1}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        RealStatistics.load(path, ORIGIN)
