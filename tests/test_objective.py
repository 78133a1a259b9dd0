import pytest
import torch
from conftest import COMBINATIONS, PARAMETRIZATIONS, TinyNetwork
from torch import nn

from lit_ddpm import (
    X0MSE,
    Denoiser,
    DiscretizedGaussian,
    EpsParametrization,
    GaussianDecoder,
    KLWeighting,
    LinearSchedule,
    MinSNRWeighting,
    PosteriorKL,
    PredictionMSE,
    SNRWeighting,
    UniformWeighting,
    VParametrization,
    X0Parametrization,
    kl_weight,
)
from lit_ddpm.diffusion.objective import kl_forms
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


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize(("schedule", "parametrization"), COMBINATIONS)
def test_the_two_forms_are_equal(schedule, parametrization, variance):
    """Values to 1e-10 and gradients to 1e-8, for every t >= 2: the equivalence that the project is about."""
    torch.manual_seed(0)
    t = torch.arange(2, schedule.num_steps + 1)
    x_0 = torch.rand(len(t), 1, 4, 4, dtype=torch.float64) * 2 - 1
    eps = torch.randn(len(t), 1, 4, 4, dtype=torch.float64)
    denoiser = Denoiser(TinyNetwork().double(), schedule, parametrization, variance=variance)
    pred = denoiser.predict(x_0, t, eps)
    full, simplified = PosteriorKL()(denoiser, pred), X0MSE(KLWeighting())(denoiser, pred)
    simplified = simplified + kl_constant(schedule, t, variance)
    torch.testing.assert_close(full, simplified, rtol=1e-10, atol=0)
    grad_full = torch.autograd.grad(full.sum(), pred.output, retain_graph=True)[0]
    grad_simplified = torch.autograd.grad(simplified.sum(), pred.output, retain_graph=True)[0]
    torch.testing.assert_close(grad_full, grad_simplified, rtol=1e-8, atol=1e-300)
    weights = list(denoiser.parameters())
    for a, b in zip(
        torch.autograd.grad(full.mean(), weights, retain_graph=True),
        torch.autograd.grad(simplified.mean(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()))


def test_both_forms_of_some_samples():
    denoiser, pred = make(t=(2, 1, 500, 1000), variance="beta")
    rows = (pred.t >= 2).nonzero().flatten()
    kl, kl_from_x0_mse, x0_mse = kl_forms(denoiser, pred.select(rows))
    torch.testing.assert_close(kl, kl_from_x0_mse, rtol=1e-10, atol=0)
    torch.testing.assert_close(x0_mse, X0MSE()(denoiser, pred)[rows])
    assert pred.select(rows).t.tolist() == [2, 500, 1000]
    assert pred.select(torch.arange(4)) is pred


def test_the_constant_of_the_beta_variance():
    schedule = LinearSchedule()
    t = torch.arange(2, 1001)
    ratio = (1 - schedule.alpha_bar(t - 1)) / (1 - schedule.alpha_bar(t))
    expected = 0.5 * (ratio - 1 - ratio.log())
    torch.testing.assert_close(kl_constant(schedule, t, "beta"), expected, rtol=1e-8, atol=1e-16)
    assert bool((kl_constant(schedule, t, "posterior") == 0).all())


def test_perfect_prediction_costs_nothing(schedule):
    class Perfect(nn.Module):
        def forward(self, x_t, t, answer):
            return answer

    t = torch.arange(2, schedule.num_steps + 1)
    x_0 = torch.randn(len(t), 1, 2, 2, dtype=torch.float64)
    pred = Denoiser(Perfect(), schedule, X0Parametrization()).predict(x_0, t, torch.randn_like(x_0), answer=x_0)
    denoiser = Denoiser(Perfect(), schedule, X0Parametrization())
    assert bool((PosteriorKL()(denoiser, pred) == 0).all())
    assert bool((X0MSE()(denoiser, pred) == 0).all())


def make(parametrization=None, x_scale=1.0, t=(1, 2, 500, 1000), dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    denoiser = Denoiser(TinyNetwork().to(dtype), LinearSchedule(), parametrization or X0Parametrization(), **kwargs)
    x_0 = (torch.randint(0, 17, (len(t), 1, 8, 8)) / 8 - 1).to(dtype) * x_scale
    return denoiser, denoiser.predict(x_0, torch.tensor(t), torch.randn_like(x_0))


@pytest.mark.parametrize("decoder", [DiscretizedGaussian(17), GaussianDecoder()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_first_timestep_is_the_decoder(decoder, variance):
    denoiser, pred = make(variance=variance)
    loss = PosteriorKL(decoder)(denoiser, pred)
    p = denoiser.p_posterior(pred.x_t[:1], 1)
    assert float(p.var) == pytest.approx(1e-4, rel=1e-9)  # beta_1, in both modes
    torch.testing.assert_close(loss[0], -decoder.log_prob(pred.x_0[:1], p).mean(), rtol=1e-10, atol=0)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert torch.isfinite(denoiser.network.conv.weight.grad).all()


def test_the_first_timestep_without_a_decoder_is_refused():
    denoiser, pred = make()
    with pytest.raises(ValueError, match=r"no KL at t = 1.*decoder"):
        PosteriorKL()(denoiser, pred)


def test_kl_weight_at_the_first_timestep_is_that_of_a_gaussian_decoder():
    for variance in ("posterior", "beta"):
        assert float(kl_weight(LinearSchedule(), 1, variance)) == pytest.approx(1 / (2 * 1e-4), rel=1e-9)


def test_kl_terms_take_any_real_data():
    denoiser, pred = make(x_scale=40.0, t=(2, 10, 900))
    assert torch.isfinite(PosteriorKL(DiscretizedGaussian(256))(denoiser, pred)).all()


WEIGHTINGS = [UniformWeighting(), KLWeighting(), SNRWeighting(), MinSNRWeighting(5.0)]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
def test_a_weighting_is_the_same_for_every_parametrization(weighting, parametrization):
    denoiser, pred = make(parametrization)
    error = ((pred.x0_hat - pred.x_0) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(
        X0MSE(weighting)(denoiser, pred), weighting(denoiser, pred.t) * error, rtol=1e-12, atol=0
    )


def test_the_table_of_weightings():
    schedule = LinearSchedule()
    denoiser = Denoiser(nn.Identity(), schedule, EpsParametrization())
    t = torch.tensor([1, 2, 300, 1000])
    snr = schedule.alpha_bar(t) / (1 - schedule.alpha_bar(t))
    w = (torch.cat([snr.new_zeros(1), schedule.snr(t[1:] - 1) - schedule.snr(t[1:])])) / 2
    w[0] = 1 / (2 * schedule.beta(1))
    torch.testing.assert_close(UniformWeighting()(denoiser, t), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(SNRWeighting()(denoiser, t), snr, rtol=1e-9, atol=0)
    torch.testing.assert_close(MinSNRWeighting(5.0)(denoiser, t), snr.clamp(max=5.0), rtol=1e-9, atol=0)
    torch.testing.assert_close(KLWeighting()(denoiser, t), w, rtol=1e-9, atol=0)


def test_uniform_error_of_the_output_as_weights_on_x0_mse():
    """Ho's L_simple is the weight SNR(t); a uniform error of v is the weight SNR(t) + 1."""
    for parametrization, extra in ((EpsParametrization(), 0), (VParametrization(), 1), (X0Parametrization(), None)):
        denoiser, pred = make(parametrization, t=(2, 30, 500, 900))
        weight = denoiser.schedule.snr(pred.t) + extra if extra is not None else torch.ones(4, dtype=torch.float64)
        expected = weight * X0MSE()(denoiser, pred)
        torch.testing.assert_close(PredictionMSE()(denoiser, pred), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
def test_low_precision_outputs_give_the_kl_of_the_same_outputs_in_float64(parametrization):
    """The algebra adds no error of its own: what bf16 or float32 outputs mean is computed in full."""
    for dtype in (torch.bfloat16, torch.float32):
        denoiser, pred = make(parametrization, t=(2, 10, 100, 500, 900, 1000), dtype=torch.float32)

        class Rounded(nn.Module):
            def forward(self, x_t, t, dtype=dtype, net=denoiser.network):
                return net(x_t, t).to(dtype)

        low = Denoiser(Rounded(), denoiser.schedule, parametrization).predict(pred.x_0, pred.t, pred.eps)
        assert low.output.dtype == torch.float32
        x_0, x_t, output = (x.double() for x in (low.x_0, low.x_t, low.output))
        exact = parametrization.x0_hat(denoiser.schedule, output, x_t, low.t)
        expected = kl_weight(denoiser.schedule, low.t) * ((exact - x_0) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(PosteriorKL()(denoiser, low), expected, rtol=1e-3, atol=0)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match=r"variance = 'fixed'.*posterior, beta, learned"):
        Denoiser(nn.Identity(), LinearSchedule(), X0Parametrization(), variance="fixed")
    with pytest.raises(ValueError, match="gamma = 0"):
        MinSNRWeighting(0)
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        kl_weight(LinearSchedule(), 0)
