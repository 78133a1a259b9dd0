import pytest
import torch
from torch import nn

from lit_ddpm import (
    Denoiser,
    EpsParametrization,
    KLWeighting,
    LinearSchedule,
    MinSNRWeighting,
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
    with pytest.raises(ValueError, match="gamma = 0"):
        MinSNRWeighting(0)
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        kl_weight(LinearSchedule(), 0)
