from decimal import Decimal

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from lit_ddpm import Gaussian, LinearSchedule, gaussian_kl, q_marginal, q_posterior
from lit_ddpm.diffusion.gaussian import posterior_coefficients, to_float64


def pairs(schedule):
    T = schedule.num_steps
    return [(t, s) for t in (1, 2, T // 2, T - 1, T) for s in {t - 1, t // 2, 0} if s < t]


def test_posterior_is_bayes_by_brute_force(schedule):
    """Conditions the joint normal of (x_s, x_t) given x_0 on x_t."""
    x_0, x_t = torch.randn(2, 5, 3, dtype=torch.float64)
    for t, s in pairs(schedule):
        bar_s, bar_t = schedule.alpha_bar(s), schedule.alpha_bar(t)
        alpha = bar_t / bar_s
        var_s, var_t = 1 - bar_s, 1 - bar_t
        covariance = alpha.sqrt() * var_s
        mean = bar_s.sqrt() * x_0 + covariance / var_t * (x_t - bar_t.sqrt() * x_0)
        var = var_s - covariance**2 / var_t
        q = q_posterior(schedule, x_t, x_0, t, s)
        torch.testing.assert_close(q.mean, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(q.var, var, rtol=1e-7, atol=1e-12)


def test_posterior_times_marginal_is_the_joint():
    """Log densities of the joint by torch.distributions: q(x_s|x_t,x_0) q(x_t|x_0) = q(x_s, x_t|x_0)."""
    schedule = LinearSchedule(num_steps=50)
    x_0, x_s, x_t = torch.randn(3, 1, 1, dtype=torch.float64)
    for t, s in [(2, 1), (10, 3), (50, 49), (50, 1)]:
        bar_s, bar_t = schedule.alpha_bar(s), schedule.alpha_bar(t)
        cov = (bar_t / bar_s).sqrt() * (1 - bar_s)
        covariance = torch.stack([torch.stack([1 - bar_s, cov]), torch.stack([cov, 1 - bar_t])])
        mean = torch.stack([bar_s.sqrt(), bar_t.sqrt()]) * x_0.item()
        joint = MultivariateNormal(mean, covariance).log_prob(torch.cat([x_s[0], x_t[0]]))
        q_s, q_t = q_posterior(schedule, x_t, x_0, t, s), q_marginal(schedule, x_0, t)
        product = Normal(q_s.mean, q_s.var.sqrt()).log_prob(x_s) + Normal(q_t.mean, q_t.var.sqrt()).log_prob(x_t)
        assert float(product) == pytest.approx(float(joint), rel=1e-9)


def test_coefficients_keep_their_precision_at_10_000_steps():
    """The formulas of the posterior in decimal arithmetic with 28 digits."""
    schedule, bars = LinearSchedule(num_steps=10_000), [Decimal(1)]
    for beta in schedule.betas().tolist()[:20]:
        bars.append(bars[-1] * (1 - Decimal(beta)))
    for t, s in [(2, 1), (3, 2), (5, 2), (11, 10), (20, 1)]:
        alpha = bars[t] / bars[s]
        found = posterior_coefficients(schedule, t, s)
        assert float(found.beta) == pytest.approx(float(1 - alpha), rel=1e-13, abs=0)
        assert float(found.var) == pytest.approx(float((1 - alpha) * (1 - bars[s]) / (1 - bars[t])), rel=1e-13, abs=0)
        assert float(found.c_0) == pytest.approx(float((1 - alpha) * bars[s].sqrt() / (1 - bars[t])), rel=1e-13, abs=0)
        assert float(found.c_t) == pytest.approx(float((1 - bars[s]) * alpha.sqrt() / (1 - bars[t])), rel=1e-13, abs=0)
        variance = q_marginal(schedule, torch.zeros(1, dtype=torch.float64), t).var
        assert float(variance) == pytest.approx(float(1 - bars[t]), rel=1e-13, abs=0)


def test_marginal_composes_over_steps():
    schedule = LinearSchedule(num_steps=40)
    x_0 = torch.randn(2, 3, dtype=torch.float64)
    mean, var = x_0, torch.zeros((), dtype=torch.float64)
    for t in range(1, 41):
        mean, var = schedule.alpha(t).sqrt() * mean, schedule.alpha(t) * var + schedule.beta(t)
        q = q_marginal(schedule, x_0, t)
        torch.testing.assert_close(q.mean, mean, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(q.var, var, rtol=1e-11, atol=1e-11)


def test_a_sample_of_the_marginal_is_signal_plus_noise():
    schedule, t = LinearSchedule(), torch.tensor([1, 400, 1000])
    x_0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    bar = schedule.alpha_bar(t)[:, None]
    torch.testing.assert_close(q_marginal(schedule, x_0, t).sample(eps), bar.sqrt() * x_0 + (1 - bar).sqrt() * eps)
    assert torch.equal(q_marginal(schedule, x_0, 0).sample(eps), x_0)


def test_a_timestep_for_each_sample(schedule):
    x_0, x_t = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64)
    T = schedule.num_steps
    t = torch.tensor([1, 2, T // 2, T])
    s = torch.tensor([0, 1, 1, 2])
    q = q_posterior(schedule, x_t, x_0, t, s)
    for i in range(4):
        one = q_posterior(schedule, x_t[i : i + 1], x_0[i : i + 1], int(t[i]), int(s[i]))
        torch.testing.assert_close(q.mean[i], one.mean[0])
        torch.testing.assert_close(q.var.expand_as(q.mean)[i], one.var.expand_as(one.mean)[0])


def test_kl_equals_torch_distributions():
    mean_q, mean_p = torch.randn(2, 7, dtype=torch.float64)
    var_q, var_p = torch.rand(2, 7, dtype=torch.float64) + 0.1
    found = gaussian_kl(Gaussian(mean_q, var_q), Gaussian(mean_p, var_p))
    expected = kl_divergence(Normal(mean_q, var_q.sqrt()), Normal(mean_p, var_p.sqrt()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_s_must_lie_before_t():
    x = torch.zeros(2, 1, 2, 2)
    for s in (5, 6):
        with pytest.raises(ValueError, match="s must lie before t"):
            q_posterior(LinearSchedule(), x, x, 5, s)
    for s in (-1, 1000):
        with pytest.raises(ValueError, match=rf"s = {s} lies outside the schedule: s must be in 0\.\.999"):
            q_posterior(LinearSchedule(), x, x, 5, s)


def test_float64_on_a_device_that_has_it():
    assert to_float64(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float64
