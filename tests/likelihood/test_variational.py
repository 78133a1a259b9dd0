import math
import weakref

import pytest
import torch
from helpers import GaussianOracle, TinyNetwork, oracle, tiny_denoiser

from lit_ddpm import (
    Denoiser,
    DiscretizedGaussian,
    GaussianDecoder,
    LinearSchedule,
    LogSNRSchedule,
    VParametrization,
    X0Parametrization,
    bits_per_dim,
    kl_weight,
    q_marginal,
    variational_bound,
)
from lit_ddpm.likelihood.variational import smooth_rms

TAU2 = 0.25


def gaussian_data(count, dims=4, tau2=TAU2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 1, dims, generator=generator, dtype=torch.float64) * math.sqrt(tau2)


def closed_form(schedule, tau2, variance):
    """E[bound] per dimension for x_0 ~ N(0, tau2) and its ideal denoiser, each term by hand."""
    t = torch.arange(2, schedule.num_steps + 1)
    v = 1 / (1 / tau2 + schedule.snr(t))
    ratio = torch.ones_like(v)
    if variance == "beta":
        ratio = (1 - schedule.alpha_bar(t - 1)) / (1 - schedule.alpha_bar(t))
    diffusion = (kl_weight(schedule, t, variance) * v + 0.5 * (ratio - 1 - ratio.log())).sum()
    bar, beta = schedule.alpha_bar(schedule.num_steps), schedule.beta(1)
    prior = 0.5 * ((1 - bar) + bar * tau2 - 1 - (1 - bar).log())
    v1 = 1 / (1 / tau2 + schedule.snr(1))
    reconstruction = 0.5 * (v1 / beta + torch.log(2 * torch.pi * beta))
    return float(prior), float(diffusion), float(reconstruction)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_closed_form_of_a_gaussian(variance):
    schedule = LinearSchedule(num_steps=200)
    x_0 = gaussian_data(3000)
    bound = variational_bound(oracle(schedule, TAU2, variance=variance), x_0, decoder=GaussianDecoder())
    for term, expected in zip(
        (bound.prior, bound.diffusion, bound.reconstruction), closed_form(schedule, TAU2, variance), strict=True
    ):
        mean, error = float(term.mean()) / 4, float(term.std()) / 4 / math.sqrt(len(x_0))
        assert abs(mean - expected) < 4 * error + 1e-12


def test_values_of_the_linear_schedule():
    schedule = LinearSchedule()
    t = torch.arange(2, 1001)
    v = 1 / (1 / TAU2 + schedule.snr(t))
    assert float((kl_weight(schedule, t) * v).sum()) == pytest.approx(4.3685, abs=5e-5)
    x_0 = torch.full((1, 1, 10, 10), math.sqrt(0.3), dtype=torch.float64)
    q = q_marginal(schedule, x_0, 1000)
    prior = 0.5 * (q.var - 1 - q.var.log() + q.mean**2).sum()
    assert float(bits_per_dim(prior, 100)) == pytest.approx(8.734e-6, rel=1e-3)


@pytest.mark.parametrize(("num_steps", "gap"), [(1000, 0.456), (10_000, 0.316)])
def test_the_two_limits_of_the_variance(num_steps, gap):
    """With beta the bound tends to the true likelihood; with the posterior's variance it does not (linear schedule)."""
    schedule = LinearSchedule(num_steps=num_steps)
    truth = 0.5 * math.log(2 * math.pi * math.e * TAU2)
    assert sum(closed_form(schedule, TAU2, "beta")) - truth < 40 / num_steps
    assert sum(closed_form(schedule, TAU2, "posterior")) - truth == pytest.approx(gap, abs=1e-3)


def digits_like(count):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 17, (count, 1, 4, 4), generator=generator) / 8 - 1


def test_terms_add_up_and_the_profile_to_the_diffusion():
    for num_timesteps in (None, 9):
        bound = variational_bound(tiny_denoiser(), digits_like(6), DiscretizedGaussian(17), num_timesteps)
        torch.testing.assert_close(bound.total, bound.prior + bound.diffusion + bound.reconstruction)
        assert bound.profile.shape == (39,)
        assert float(bound.profile.sum()) == pytest.approx(float(bound.diffusion.mean()), rel=1e-12)
        assert bound.dims == 16
        assert bound.total.dtype == torch.float64


def test_the_estimate_is_unbiased_and_its_error_is_known():
    denoiser, x_0, decoder = tiny_denoiser(), digits_like(1), DiscretizedGaussian(17)
    index = torch.arange(400)
    exact = variational_bound(denoiser, x_0.expand(400, -1, -1, -1), decoder, index=index)
    fast = variational_bound(denoiser, x_0.expand(400, -1, -1, -1), decoder, num_timesteps=8, index=index + 1000)
    for term in ("diffusion", "reconstruction"):
        a, b = getattr(exact, term), getattr(fast, term)
        error = math.hypot(float(a.std()) / 20, float(b.std()) / 20)
        assert abs(float(a.mean() - b.mean())) < 3.5 * error
    for bound in (exact, fast):  # one image 400 times: the variance is that of the noise
        assert bound.noise_variance() == pytest.approx(float(bound.diffusion.var()), rel=0.3)
    two_calls = variational_bound(denoiser, x_0.expand(2, -1, -1, -1), decoder, num_timesteps=2)
    assert float(exact.second_moment.sum()) == pytest.approx(float(fast.second_moment.sum()), rel=0.3)
    assert math.isnan(two_calls.noise_variance())


def test_importance_sampling_reduces_the_variance():
    """Uniform draws mostly miss an error of 1 at a few timesteps."""

    class WrongAtFirst(TinyNetwork):
        def forward(self, x_t, t, **cond):
            output = super().forward(x_t, t)
            return torch.where((t <= 4)[:, None, None, None], output + 1, output)

    torch.manual_seed(3)
    denoiser = Denoiser(WrongAtFirst(num_steps=40), LinearSchedule(40), VParametrization())
    x_0, decoder = digits_like(1).expand(400, -1, -1, -1), DiscretizedGaussian(17)
    exact = variational_bound(denoiser, x_0, decoder)
    spreads = []
    for second_moment in (None, exact.second_moment):
        index = torch.arange(400) + 1000
        fast = variational_bound(denoiser, x_0, decoder, 8, index=index, second_moment=second_moment)
        spread = float(fast.diffusion.std())
        assert (
            abs(float((fast.diffusion - exact.diffusion).mean()))
            < 3.5 * math.hypot(spread, float(exact.diffusion.std())) / 20
        )
        assert fast.noise_variance() == pytest.approx(spread**2, rel=0.3)
        assert float(fast.profile.sum()) == pytest.approx(float(fast.diffusion.mean()), rel=1e-12)
        spreads.append(spread)
    assert spreads[1] < 0.5 * spreads[0]
    every = variational_bound(denoiser, x_0, decoder, 40, second_moment=exact.second_moment)
    assert torch.equal(every.total, exact.total)
    with pytest.raises(ValueError, match=r"second_moment must have one value for each t = 2\.\.T, 39, not 3"):
        variational_bound(denoiser, x_0, decoder, 8, second_moment=torch.ones(3))


class Rescaled(torch.nn.Module):
    """x_t divided by its signal: each KL is the same multiple of the squared noise where log SNR is a line."""

    schedule = LogSNRSchedule(num_steps=200)
    kl = 0.5 * (float(schedule.snr(1) / schedule.snr(2)) - 1)  # a dimension, for every t and a gain of 1

    def forward(self, x_t, t, clean, gain=1.0):
        """The error of x0_hat is multiplied by the gain."""
        return clean + gain * (x_t / self.schedule.alpha_bar(t).sqrt().reshape(-1, 1, 1, 1) - clean)


def rescaled_bound(count, dims=64, num_timesteps=None, **kwargs):
    denoiser = Denoiser(Rescaled(), Rescaled.schedule, X0Parametrization())
    x_0 = gaussian_data(count, dims)
    return variational_bound(denoiser, x_0, GaussianDecoder(), num_timesteps, clean=x_0, **kwargs)


def test_the_control_variate_removes_the_noise_of_eps():
    count, dims, kl = 200, 64, 64 * Rescaled.kl
    moments = torch.full((199,), kl**2 * (1 + 2 / dims))
    fast = rescaled_bound(count, dims, num_timesteps=8, second_moment=moments)
    spread = float(fast.diffusion.std())
    assert float(fast.diffusion.mean()) == pytest.approx(199 * kl, abs=4 * spread / count**0.5)
    assert spread < 0.3 * 199 * kl * (2 / dims / 7) ** 0.5  # the spread without a control variate


@pytest.mark.parametrize("num_timesteps", [3, 4, 5, 8])
def test_the_noise_variance_leaves_out_the_spread_of_images(num_timesteps):
    """The terms of an image have one distribution, whose size differs between the images by a factor of 16."""
    count, dims, gain = 3000, 4, torch.linspace(0.5, 2, 3000, dtype=torch.float64).reshape(-1, 1, 1, 1)
    bound = rescaled_bound(count, dims, num_timesteps, gain=gain)
    found = bound.noise_variance()
    of_a_term = float((gain**4).mean()) * 2 * dims * Rescaled.kl**2
    assert found == pytest.approx(199**2 / (num_timesteps - 1) * of_a_term, rel=0.08)


def test_averages_at_each_timestep_are_those_of_the_noise():
    bound, kl = rescaled_bound(200), torch.full((199,), 64 * Rescaled.kl, dtype=torch.float64)
    assert bound.visits.tolist() == [200] * 200
    expected = 1 / Rescaled.schedule.snr(torch.arange(1, 201))
    torch.testing.assert_close(bound.squared_error / 200, expected, rtol=0.06, atol=0)
    torch.testing.assert_close(bound.kl / 200, kl, rtol=0.06, atol=0)
    torch.testing.assert_close(bound.second_moment, kl**2 * (1 + 2 / 64), rtol=0.12, atol=0)


def test_the_last_stratum_ends_at_the_last_timestep(monkeypatch):
    """Densities may sum to less than the largest quantile."""
    monkeypatch.setattr(torch, "rand", lambda size, **kwargs: torch.full((size,), 1 - 2**-53, dtype=torch.float64))
    for num_steps in (30, 38, 50):
        bound = variational_bound(tiny_denoiser(num_steps), digits_like(2), DiscretizedGaussian(17), 5)
        assert bound.visits[-1] == 2


@pytest.mark.parametrize("num_kl", [1, 5, 39, 255])
def test_the_smooth_rms_is_smooth_and_positive(num_kl):
    second_moment = torch.rand(num_kl, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    size = smooth_rms(second_moment)
    assert size.shape == (num_kl,)
    assert torch.equal(size, smooth_rms(second_moment * (1 + 1e-7)))
    assert 0.5 < float(size.mean() / second_moment.mean().sqrt()) < 2
    assert bool((smooth_rms(torch.zeros(num_kl)) > 0).all())
    for constant in (1e-6, 1.0, 1e6):
        rms = smooth_rms(torch.full((num_kl,), constant)) / constant**0.5
        assert float(rms.min()) > 2**-0.26
        assert float(rms.max()) < 2**0.26


def test_all_strata_are_all_timesteps():
    denoiser, x_0, decoder = tiny_denoiser(), digits_like(5), DiscretizedGaussian(17)
    every = variational_bound(denoiser, x_0, decoder)
    torch.testing.assert_close(every.total, variational_bound(denoiser, x_0, decoder, num_timesteps=40).total)


def test_one_network_call_per_timestep():
    schedule = LinearSchedule(num_steps=30)
    for num_timesteps, calls in ((None, 30), (7, 7)):
        network = GaussianOracle(schedule, TAU2)
        denoiser = Denoiser(network, schedule, X0Parametrization())
        bound = variational_bound(denoiser, gaussian_data(5), GaussianDecoder(), num_timesteps)
        assert network.calls == [5] * calls
        assert bound.num_calls == calls


def test_the_bound_is_independent_of_batch_and_order():
    denoiser, x_0, decoder = tiny_denoiser(), digits_like(12), DiscretizedGaussian(17)
    for num_timesteps in (None, 8):
        together = variational_bound(denoiser, x_0, decoder, num_timesteps)
        index = torch.tensor([7, 2, 11])
        alone = variational_bound(denoiser, x_0[index], decoder, num_timesteps, index=index)
        bits = bits_per_dim(together.total[index] - alone.total, 16)
        assert float(bits.abs().max()) < 1e-5
        assert torch.equal(variational_bound(denoiser, x_0, decoder, num_timesteps, seed=0).total, together.total)
        other = variational_bound(denoiser, x_0, decoder, num_timesteps, seed=1)
        assert float((other.total - together.total).abs().min()) > 1e-3


def test_random_state_and_training_mode_are_unchanged():
    denoiser, x_0 = tiny_denoiser(), digits_like(2)
    denoiser.network.conv.eval()
    before = torch.get_rng_state()
    variational_bound(denoiser, x_0, DiscretizedGaussian(17), 5)
    assert torch.equal(before, torch.get_rng_state())
    assert denoiser.training
    assert denoiser.network.training
    assert not denoiser.network.conv.training


def test_memory_does_not_grow_with_the_number_of_steps():
    """Only the input and output of the last call of the network may still be alive."""
    denoiser, seen, most = tiny_denoiser(num_steps=300), [], 0

    def count_alive(module, args, output):
        nonlocal most
        seen.extend([weakref.ref(args[0]), weakref.ref(output)])
        most = max(most, sum(ref() is not None for ref in seen))

    denoiser.network.register_forward_hook(count_alive)
    variational_bound(denoiser, digits_like(3), DiscretizedGaussian(17))
    assert len(seen) == 600
    assert most <= 4


def test_clipping_belongs_to_the_model():
    denoiser = tiny_denoiser(clip=True)
    with torch.no_grad():
        denoiser.network.conv.weight.mul_(50)
    x_0 = digits_like(4)
    assert float(denoiser(torch.randn(4, 1, 4, 4), 20).detach().abs().max()) <= 1
    pred = denoiser.predict(x_0, torch.tensor([20, 30, 40, 40]), torch.randn_like(x_0))
    assert float(pred.x0_hat.detach().abs().max()) > 1
    clipped = variational_bound(denoiser, x_0, DiscretizedGaussian(17))
    denoiser.clip = False
    assert float((clipped.total - variational_bound(denoiser, x_0, DiscretizedGaussian(17)).total).abs().min()) > 1e-3


def test_bad_input_is_refused_before_any_work():
    denoiser, decoder = tiny_denoiser(), DiscretizedGaussian(17)
    for num_timesteps in (0, 1, 41):
        with pytest.raises(ValueError, match=r"num_timesteps = .* must be in 2\.\.40"):
            variational_bound(denoiser, digits_like(2), decoder, num_timesteps)
    with pytest.raises(ValueError, match="index must have one number"):
        variational_bound(denoiser, digits_like(2), decoder, index=torch.arange(3))
    with pytest.raises(ValueError, match="levels = 17"):
        variational_bound(denoiser, digits_like(2) * 0.99, decoder)
    with pytest.raises(ValueError, match="clip"):
        variational_bound(tiny_denoiser(clip=True), digits_like(2) * 1.5, GaussianDecoder())


def test_the_conditions_of_the_network_are_those_of_the_bound():
    assert rescaled_bound(2, 4, num_timesteps=3).conditioned_on == ("clean",)
    assert variational_bound(tiny_denoiser(), digits_like(2), DiscretizedGaussian(17), 3).conditioned_on == ()
