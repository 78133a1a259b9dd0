import math

import pytest
import torch
from helpers import continuous
from torch import nn

from lit_ddpm import (
    BetaSchedule,
    Denoiser,
    EDMWeighting,
    EpsParametrization,
    FlowMatchingWeighting,
    KLWeighting,
    LinearSchedule,
    LogSNRSchedule,
    MinSNRWeighting,
    P2Weighting,
    SigmoidWeighting,
    SNRWeighting,
    UniformWeighting,
    X0Parametrization,
    kl_weight,
)
from lit_ddpm.diffusion.weighting import kl_constant


def test_kl_weight_is_half_the_difference_of_the_snr(schedule):
    t = torch.arange(2, schedule.num_steps + 1)
    half_difference = (schedule.snr(t - 1) - schedule.snr(t)) / 2
    torch.testing.assert_close(kl_weight(schedule, t), half_difference, rtol=1e-11, atol=0)
    assert bool((kl_weight(schedule, t) > 0).all())


def test_kl_weight_of_ten_thousand_steps():
    schedule = LinearSchedule(num_steps=10_000)
    t = torch.arange(2, 10_001)
    torch.testing.assert_close(kl_weight(schedule, t), (schedule.snr(t - 1) - schedule.snr(t)) / 2, rtol=1e-9, atol=0)


def test_published_weights():
    assert float(kl_weight(LinearSchedule(), 2)) == pytest.approx(2726.3, abs=0.05)
    assert float(kl_weight(LinearSchedule(), 1000)) == pytest.approx(4.118e-7, rel=5e-4)


def test_kl_weight_at_the_first_timestep():
    for variance in ("posterior", "beta"):
        assert float(kl_weight(LinearSchedule(), 1, variance)) == pytest.approx(1 / (2 * 1e-4), rel=1e-9)


def test_the_constant_of_the_beta_variance():
    schedule = LinearSchedule()
    t = torch.arange(2, 1001)
    ratio = (1 - schedule.alpha_bar(t - 1)) / (1 - schedule.alpha_bar(t))
    expected = 0.5 * (ratio - 1 - ratio.log())
    torch.testing.assert_close(kl_constant(schedule, t, "beta"), expected, rtol=1e-8, atol=1e-16)
    assert bool((kl_constant(schedule, t, "posterior") == 0).all())
    assert kl_constant(schedule, 1, "posterior") == kl_constant(schedule, 1, "beta") == 0  # t = 1 has no KL


def test_the_table_of_weightings():
    schedule = LinearSchedule()
    denoiser = Denoiser(nn.Identity(), schedule, EpsParametrization())
    t = torch.tensor([1, 2, 300, 1000])
    snr = schedule.alpha_bar(t) / (1 - schedule.alpha_bar(t))
    w = (torch.cat([snr.new_zeros(1), schedule.snr(t[1:] - 1) - schedule.snr(t[1:])])) / 2
    w[0] = 1 / (2 * schedule.beta(1))
    torch.testing.assert_close(UniformWeighting()(denoiser, t), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(SNRWeighting()(denoiser, t), snr, rtol=1e-9, atol=0)
    torch.testing.assert_close(MinSNRWeighting(0.5)(denoiser, t), snr.clamp(max=0.5), rtol=1e-9, atol=0)
    torch.testing.assert_close(MinSNRWeighting()(denoiser, t), snr.clamp(max=5.0), rtol=1e-9, atol=0)  # the paper's
    torch.testing.assert_close(KLWeighting()(denoiser, t), w, rtol=1e-9, atol=0)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"variance = 'fixed'.*posterior, beta, analytic, learned, fixed_small, fixed_large"
    ):
        Denoiser(nn.Identity(), LinearSchedule(), X0Parametrization(), variance="fixed")
    with pytest.raises(ValueError, match="gamma = 0 of MinSNRWeighting must be positive"):
        MinSNRWeighting(0)
    with pytest.raises(ValueError, match="k = -1 of P2Weighting must be positive"):
        P2Weighting(k=-1)
    with pytest.raises(ValueError, match="gamma = -1 of P2Weighting must not be negative"):
        P2Weighting(gamma=-1)
    with pytest.raises(ValueError, match="sigma_data = nan of EDMWeighting must be positive"):
        EDMWeighting(sigma_data=math.nan)
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        kl_weight(LinearSchedule(), 0)


def cosine(num_steps):
    """The cosine schedule without the offset and the cap of `CosineSchedule`, cut at both ends."""
    alpha_bar = (torch.linspace(0.01, 0.99, num_steps, dtype=torch.float64) * math.pi / 2).cos() ** 2
    return BetaSchedule(1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]]))


def factor_on_the_bound(weighting, schedule):
    """log SNR and a weighting over the weight of the bound, at the middle of each step in continuous time."""
    denoiser = Denoiser(continuous(nn.Identity()), schedule, EpsParametrization())
    t = torch.arange(2, schedule.num_steps + 1) - 0.5
    return schedule.log_snr(t), weighting(denoiser, t) / KLWeighting()(denoiser, t)


# With SNR = cot^2 of an angle in proportion to t, -d SNR / dt is proportional to SNR / sech(log SNR / 2).
@pytest.mark.parametrize(
    ("weighting", "relative"),
    [
        (SNRWeighting(), lambda x: 1),
        (MinSNRWeighting(5.0), lambda x: (5 * torch.exp(-x)).clamp(max=1)),
        (P2Weighting(gamma=0.5), lambda x: (1 + x.exp()) ** -0.5),
        (P2Weighting(), lambda x: 1 / (1 + x.exp())),
    ],
)
def test_weights_at_uniform_t_on_the_cosine_schedule(weighting, relative):
    """The factors of Kingma and Gao 2023, table 1: sech(log SNR / 2) for the uniform eps-MSE."""
    log_snr, factor = factor_on_the_bound(weighting, cosine(4000))
    ratio = factor * torch.cosh(log_snr / 2) / relative(log_snr)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)


def test_flow_matching_is_the_velocity_mse_of_straight_paths():
    """x_s = (1 - s) x_0 + s eps at uniform s: the error of the velocity is that of x_0 over s."""
    schedule = LogSNRSchedule(num_steps=4000, log_snr_start=8, log_snr_end=-8)
    log_snr, factor = factor_on_the_bound(FlowMatchingWeighting(), schedule)
    s = 1 / (1 + torch.exp(log_snr / 2))  # SNR = ((1 - s) / s)^2
    torch.testing.assert_close(((1 - s) / s) ** 2, log_snr.exp(), rtol=1e-9, atol=0)
    weight_for_each_log_snr = 1 / s**2 * s * (1 - s) / 2  # d s / d log SNR
    bound_for_each_log_snr = log_snr.exp() / 2
    torch.testing.assert_close(factor, weight_for_each_log_snr / bound_for_each_log_snr, rtol=1e-9, atol=0)


def test_edm_is_the_mean_of_its_loss_over_its_noise_levels():
    """The loss of Karras et al. 2022, table 1, with the density of log SNR by the change of variables."""
    schedule = LogSNRSchedule(num_steps=1000, log_snr_start=9, log_snr_end=-9)
    log_snr, factor = factor_on_the_bound(EDMWeighting(mean=-1.1, std=1.3, sigma_data=0.4), schedule)
    sigma = torch.exp(-log_snr / 2)
    loss_weight = (sigma**2 + 0.4**2) / (sigma * 0.4) ** 2
    density = torch.distributions.LogNormal(-1.1, 1.3).log_prob(sigma).exp() * sigma / 2
    ratio = factor / (loss_weight * density / (log_snr.exp() / 2))
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-6, atol=0)


def test_the_sigmoid_decreases_the_weight_of_small_noise():
    log_snr, factor = factor_on_the_bound(SigmoidWeighting(bias=1.5), LogSNRSchedule(num_steps=100))
    torch.testing.assert_close(factor, 1 / (1 + torch.exp(log_snr - 1.5)), rtol=1e-9, atol=0)


def test_a_factor_is_read_at_the_mean_snr_of_a_step():
    schedule, t = LinearSchedule(num_steps=50), torch.arange(2, 51)
    weight = FlowMatchingWeighting()(Denoiser(nn.Identity(), schedule, EpsParametrization()), t)
    mean_snr = (schedule.snr(t - 1) + schedule.snr(t)) / 2
    torch.testing.assert_close(weight, kl_weight(schedule, t) / mean_snr.sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("weighting", [EDMWeighting(), SigmoidWeighting(), FlowMatchingWeighting(), P2Weighting()])
def test_weights_are_finite_without_signal_and_in_continuous_time(weighting):
    zero_terminal = LinearSchedule(num_steps=50, zero_terminal_snr=True)
    weight = weighting(Denoiser(nn.Identity(), zero_terminal, X0Parametrization()), torch.arange(1, 51))
    assert bool(weight.isfinite().all())
    assert bool((weight[:-1] > 0).all())
    schedule = LogSNRSchedule(num_steps=2000)
    denoiser = Denoiser(continuous(nn.Identity()), schedule, X0Parametrization())
    t = torch.arange(2, 2001)
    steps, middle = weighting(denoiser, t), weighting(denoiser, t - 0.5)
    torch.testing.assert_close(steps, middle, rtol=0.01, atol=0)
