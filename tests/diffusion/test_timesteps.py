"""The distributions of t, and their weights."""

import pytest
import torch
from helpers import tiny_denoiser
from torch import nn

from lit_ddpm import (
    AdaptiveTimesteps,
    Denoiser,
    ImportanceTimesteps,
    LogSNRSchedule,
    PredictionMSE,
    StratifiedTimesteps,
    UniformTimesteps,
    VParametrization,
    training_loss,
)
from lit_ddpm.diffusion.objective import loss_of_batch


@pytest.mark.parametrize("timesteps", [UniformTimesteps(), StratifiedTimesteps()], ids=lambda t: type(t).__name__)
def test_every_t_is_drawn_equally_often(timesteps):
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(9)
    for _ in range(4000):
        t, weight = timesteps.sample(3, 8, generator)
        assert torch.equal(weight, torch.ones(3, dtype=torch.float64))
        counts += t.bincount(minlength=9)
    assert counts[0] == 0
    share = counts[1:] / counts.sum()
    assert float((share - 1 / 8).abs().max()) < 4 * (1 / 8 * 7 / 8 / 12_000) ** 0.5


def test_a_batch_of_t_strata_has_each_t_once():
    for seed in range(20):
        t, _ = StratifiedTimesteps().sample(12, 12, torch.Generator().manual_seed(seed))
        assert t.tolist() == list(range(1, 13))


def test_the_last_stratum_ends_at_the_last_timestep(monkeypatch):
    """The largest offset below 1 is rounded to 1 when it is added to an index."""
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(1 - 2**-53, dtype=torch.float64))
    t, _ = StratifiedTimesteps().sample(128, 1000)
    assert int(t.max()) == 1000


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


def test_t_is_uniform_until_each_has_all_its_losses():
    timesteps = ImportanceTimesteps(history=3)
    timesteps.sample(1, 4)
    for number in (1, 2, 3):
        timesteps.update(torch.arange(1, 5), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert bool((timesteps.probabilities(4) == 1 / 4).all()) == (number < 3)


def test_draws_have_the_probabilities_of_the_losses():
    timesteps, count = trained_timesteps(), 100_000
    p = timesteps.probabilities(8)
    t, weight = timesteps.sample(count, 8, torch.Generator().manual_seed(0))
    assert bool(((t.bincount(minlength=9)[1:] / count - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all())
    torch.testing.assert_close(weight, 1 / (8 * p[t - 1]), rtol=1e-12, atol=0)
    assert bool((trained_timesteps(uniform_share=1).probabilities(8) == 1 / 8).all())


def test_importance_is_that_of_the_paper_and_asks_for_losses():
    timesteps = ImportanceTimesteps()
    assert (timesteps.history, timesteps.uniform_share) == (10, 0.001)
    assert timesteps.uses_losses
    assert not UniformTimesteps().uses_losses


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


def informed(**kwargs):
    """A continuous sampler whose losses grow along time."""
    timesteps = AdaptiveTimesteps(num_blocks=4, continuous=True, **kwargs)
    timesteps.sample(1, 41)
    timesteps.update(torch.tensor([5.0, 15.0, 25.0, 35.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    return timesteps


def test_continuous_draws_are_one_of_each_stratum():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        t, weight = AdaptiveTimesteps(continuous=True).sample(8, 41, generator)
        assert t.dtype == torch.float64
        assert torch.equal(((t - 1) / 40 * 8).long(), torch.arange(8))
        torch.testing.assert_close(weight, torch.ones(8, dtype=torch.float64))


def test_continuous_draws_follow_the_losses():
    timesteps = informed(uniform_share=0.2)
    torch.testing.assert_close(timesteps.probabilities(), 0.8 * torch.tensor([1, 2, 3, 4.0]).double() / 10 + 0.05)
    t, weight = timesteps.sample(200_000, 41, torch.Generator().manual_seed(0))
    assert float(t.min()) >= 1
    assert float(t.max()) <= 41
    counts = ((t - 1) / 10).long().bincount(minlength=4) / len(t)
    torch.testing.assert_close(counts.double(), timesteps.probabilities(), atol=1e-4, rtol=0)
    assert float((weight * t**2).mean()) == pytest.approx((41**3 - 1) / 3 / 40, rel=1e-4)  # a mean over uniform t


def test_adaptive_draws_at_integers():
    timesteps = AdaptiveTimesteps(num_blocks=4, uniform_share=0.2)
    t, weight = timesteps.sample(40, 40)
    assert t.tolist() == list(range(1, 41))
    timesteps.update(t, torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat_interleave(10))
    t, weight = timesteps.sample(200_000, 40, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64
    counts = t.bincount(minlength=41)[1:].double() / len(t)
    expected = (0.8 * torch.tensor([1, 2, 3, 4.0]).double() / 10 + 0.05).repeat_interleave(10) / 10
    torch.testing.assert_close(counts, expected, atol=2e-5, rtol=0)
    assert float((weight * t).mean()) == pytest.approx(20.5, rel=1e-3)


def test_continuous_losses_are_averaged_by_block():
    timesteps = informed(decay=0.5)
    timesteps.update(torch.tensor([2.0, 4.0]), torch.tensor([3.0, 1.0]))
    assert timesteps.state_dict()["mean_square"].tolist() == pytest.approx([0.5 * 1 + 0.5 * 5, 4, 9, 16])
    timesteps.update(torch.tensor([2.0, 40.0]), torch.tensor([torch.inf, torch.nan]))
    assert timesteps.state_dict()["mean_square"].tolist() == pytest.approx([0.5 * 1 + 0.5 * 5, 4, 9, 16])
    again = AdaptiveTimesteps(num_blocks=4)
    again.load_state_dict(timesteps.state_dict())
    assert torch.equal(again.probabilities(), AdaptiveTimesteps.probabilities(again))
    again.reset()
    assert again.probabilities().tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_blocks": 0}, "num_blocks = 0 of AdaptiveTimesteps must be at least 1"),
        ({"uniform_share": 0.0}, r"uniform_share = 0.0 of AdaptiveTimesteps must be in \(0, 1\]"),
        ({"decay": 1.0}, r"decay = 1.0 of AdaptiveTimesteps must be in \[0, 1\)"),
    ],
)
def test_wrong_settings_of_continuous_draws(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveTimesteps(**settings)


@pytest.mark.parametrize(
    ("timesteps", "probabilities"),
    [
        (ImportanceTimesteps(history=2), lambda timesteps: timesteps.probabilities(20)),
        (AdaptiveTimesteps(num_blocks=5), lambda timesteps: timesteps.probabilities()),
    ],
)
def test_a_loop_without_lightning_passes_its_losses(timesteps, probabilities):
    denoiser, x_0 = tiny_denoiser(20), torch.rand(64, 1, 4, 4) * 2 - 1
    optimizer, seen = torch.optim.Adam(denoiser.parameters(), lr=1e-3), []
    uniform = probabilities(timesteps)
    for _ in range(5):
        result = training_loss(denoiser, x_0, timesteps=timesteps)
        seen.append((result.pred.t, result.losses.detach()))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    followed = probabilities(timesteps)
    assert float(followed.sum()) == pytest.approx(1)
    assert float((followed - uniform).abs().max()) > 1e-3
    by_hand = type(timesteps)(**{name: value for name, value in vars(timesteps).items() if not name.startswith("_")})
    by_hand.sample(1, 20)
    for t, losses in seen:
        by_hand.update(t, losses)
    assert torch.equal(probabilities(by_hand), followed)
    _, weight = timesteps.sample(64, 20)
    assert len(set(weight.tolist())) > 1


def test_the_loss_of_a_batch_records_nothing():
    timesteps, x_0 = AdaptiveTimesteps(num_blocks=2), torch.rand(64, 1, 4, 4) * 2 - 1
    result = loss_of_batch(tiny_denoiser(20), x_0, PredictionMSE(), timesteps)
    assert bool(timesteps.state_dict()["mean_square"].isnan().all())
    timesteps.update(result.pred.t, result.losses.detach())
    assert bool(timesteps.state_dict()["mean_square"].isfinite().all())


def test_a_loop_in_continuous_time_passes_its_losses():
    class Network(nn.Module):
        time = "log_snr"

        def forward(self, x_t, t):
            return t[:, None, None, None] / 1000 * x_t

    denoiser = Denoiser(Network(), LogSNRSchedule(10), VParametrization())
    timesteps = AdaptiveTimesteps(num_blocks=4, continuous=True)
    training_loss(denoiser, torch.rand(64, 1, 4, 4) * 2 - 1, timesteps=timesteps)
    assert float((timesteps.probabilities() - 0.25).abs().max()) > 1e-3
