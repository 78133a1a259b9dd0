"""Timesteps sampled by importance."""

import pytest
import torch

from lit_ddpm import ImportanceTimesteps


def trained_timesteps(num_steps=8, history=3, **kwargs):
    timesteps = ImportanceTimesteps(history, **kwargs)
    timesteps.sample(1, num_steps)
    for _ in range(history):
        timesteps.update(torch.arange(1, num_steps + 1), torch.arange(1, num_steps + 1).double())
    return timesteps


def test_importance_timesteps_follow_the_losses():
    timesteps = ImportanceTimesteps(history=2)
    assert torch.equal(timesteps.sample(100, 8)[1], torch.ones(100, dtype=torch.float64))
    timesteps.update(torch.arange(1, 8).repeat(2), torch.rand(14))
    assert torch.equal(timesteps.probabilities(8), torch.full((8,), 1 / 8, dtype=torch.float64))
    expected = 0.999 * torch.arange(1, 9).double() / 36 + 0.001 / 8
    torch.testing.assert_close(trained_timesteps().probabilities(8), expected)


def test_only_the_last_losses_count():
    timesteps = trained_timesteps()
    timesteps.update(torch.full((3,), 1), torch.full((3,), 100.0))
    assert float(timesteps.probabilities(8)[0]) == pytest.approx(0.999 * 100 / 135 + 0.001 / 8)


def test_weighted_averages_are_unbiased():
    timesteps = trained_timesteps()
    value = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], dtype=torch.float64)
    t, weight = timesteps.sample(200_000, 8, torch.Generator().manual_seed(0))
    estimates = weight * value[t - 1]
    assert float(estimates.mean()) == pytest.approx(float(value.mean()), abs=4 * float(estimates.std()) / 200_000**0.5)
    assert float(weight.mean()) == pytest.approx(1, abs=0.02)


def test_bad_settings_of_importance_are_refused():
    with pytest.raises(ValueError, match="history = 0 of ImportanceTimesteps must be at least 1"):
        ImportanceTimesteps(history=0)
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=rf"uniform_share = {share} of ImportanceTimesteps must be in \(0, 1\]"):
            ImportanceTimesteps(uniform_share=share)
