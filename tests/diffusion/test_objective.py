import pytest
import torch
from helpers import (
    COMBINATIONS,
    PARAMETRIZATIONS,
    TinyNetwork,
    VarianceNetwork,
    learned_variance_denoiser,
    tiny_denoiser,
)
from torch import nn
from torch.distributions import Normal, kl_divergence

from lit_ddpm import (
    X0MSE,
    Denoiser,
    DiscretizedGaussian,
    EpsParametrization,
    GaussianDecoder,
    HybridObjective,
    KLWeighting,
    LinearSchedule,
    MinSNRWeighting,
    Objective,
    PosteriorKL,
    PredictionMSE,
    SNRWeighting,
    UniformTimesteps,
    UniformWeighting,
    VParametrization,
    X0Parametrization,
    kl_weight,
    training_loss,
)
from lit_ddpm.diffusion.gaussian import q_posterior
from lit_ddpm.diffusion.objective import kl_forms, weight_on_x0_mse
from lit_ddpm.diffusion.weighting import kl_constant


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize(("schedule", "parametrization"), COMBINATIONS)
def test_the_two_forms_are_equal(schedule, parametrization, variance):
    """Values to 1e-10 and gradients to 1e-8, for every t >= 2: the ELBO equivalence."""
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


def test_both_forms_are_equal_for_each_sample():
    denoiser, pred = denoiser_and_prediction(t=(2, 4, 500, 1000), variance="beta")
    kl, kl_from_x0_mse, x0_mse = kl_forms(denoiser, pred)
    torch.testing.assert_close(kl, kl_from_x0_mse, rtol=1e-10, atol=0)
    torch.testing.assert_close(x0_mse, X0MSE()(denoiser, pred))


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


def denoiser_and_prediction(parametrization=None, x_scale=1.0, t=(1, 2, 500, 1000), dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    denoiser = Denoiser(TinyNetwork().to(dtype), LinearSchedule(), parametrization or X0Parametrization(), **kwargs)
    x_0 = (torch.randint(0, 17, (len(t), 1, 8, 8)) / 8 - 1).to(dtype) * x_scale
    return denoiser, denoiser.predict(x_0, torch.tensor(t), torch.randn_like(x_0))


@pytest.mark.parametrize("decoder", [DiscretizedGaussian(17), GaussianDecoder()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_first_timestep_is_the_decoder(decoder, variance):
    denoiser, pred = denoiser_and_prediction(variance=variance)
    loss = PosteriorKL(decoder)(denoiser, pred)
    p = denoiser.p_posterior(pred.x_t[:1], 1)
    assert float(p.var) == pytest.approx(1e-4, rel=1e-9)  # beta_1, in both modes
    torch.testing.assert_close(loss[0], -decoder.log_prob(pred.x_0[:1], p).mean(), rtol=1e-10, atol=0)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert torch.isfinite(denoiser.network.conv.weight.grad).all()


def test_the_first_timestep_without_a_decoder_is_refused():
    denoiser, pred = denoiser_and_prediction()
    with pytest.raises(ValueError, match=r"no KL at t = 1.*decoder"):
        PosteriorKL()(denoiser, pred)


def test_kl_terms_take_any_real_data():
    denoiser, pred = denoiser_and_prediction(x_scale=40.0, t=(2, 10, 900))
    assert torch.isfinite(PosteriorKL(DiscretizedGaussian(256))(denoiser, pred)).all()


WEIGHTINGS = [UniformWeighting(), KLWeighting(), SNRWeighting(), MinSNRWeighting(5.0)]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
def test_a_weighting_is_the_same_for_every_parametrization(weighting, parametrization):
    denoiser, pred = denoiser_and_prediction(parametrization)
    error = ((pred.x0_hat - pred.x_0) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(
        X0MSE(weighting)(denoiser, pred), weighting(denoiser, pred.t) * error, rtol=1e-12, atol=0
    )


def test_uniform_error_of_the_output_as_weights_on_x0_mse():
    """L_simple of Ho et al. has the weight SNR(t); a uniform error of v has SNR(t) + 1."""
    for parametrization, extra in ((EpsParametrization(), 0), (VParametrization(), 1), (X0Parametrization(), None)):
        denoiser, pred = denoiser_and_prediction(parametrization, t=(2, 30, 500, 900))
        weight = denoiser.schedule.snr(pred.t) + extra if extra is not None else torch.ones(4, dtype=torch.float64)
        expected = weight * X0MSE()(denoiser, pred)
        torch.testing.assert_close(PredictionMSE()(denoiser, pred), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
def test_kl_of_low_precision_outputs(parametrization):
    """The KL of bf16 or float32 outputs is computed in full precision."""
    for dtype in (torch.bfloat16, torch.float32):
        denoiser, pred = denoiser_and_prediction(parametrization, t=(2, 10, 100, 500, 900, 1000), dtype=torch.float32)

        class Rounded(nn.Module):
            def forward(self, x_t, t, dtype=dtype, net=denoiser.network):
                return net(x_t, t).to(dtype)

        low = Denoiser(Rounded(), denoiser.schedule, parametrization).predict(pred.x_0, pred.t, pred.eps)
        assert low.output.dtype == torch.float32
        x_0, x_t, output = (x.double() for x in (low.x_0, low.x_t, low.output))
        exact = parametrization.x0_hat(denoiser.schedule, output, x_t, low.t)
        expected = kl_weight(denoiser.schedule, low.t) * ((exact - x_0) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(PosteriorKL()(denoiser, low), expected, rtol=1e-3, atol=0)


def test_kl_of_a_learned_variance_equals_torch():
    model = learned_variance_denoiser()
    x_0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([2, 9, 20, 35, 50])
    with torch.no_grad():
        pred = model.predict(x_0, t, eps)
        p = model.p_given_x0_hat(pred.x_t, pred.x0_hat, t, log_variance_position=pred.log_variance_position)
        q = q_posterior(model.schedule, pred.x_t, x_0, t)
        expected = kl_divergence(Normal(q.mean, q.var.sqrt()), Normal(p.mean, p.var.sqrt())).flatten(1).mean(1)
        torch.testing.assert_close(PosteriorKL()(model, pred), expected, rtol=1e-9, atol=1e-12)


def test_gradients_of_the_hybrid_objective():
    model = learned_variance_denoiser()
    x_0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([2, 9, 20, 35, 50])

    def gradients(objective):
        model.zero_grad()
        objective(model, model.predict(x_0, t, eps)).sum().backward()
        parameters = (model.network.conv.weight, model.network.position.weight)
        return [None if p.grad is None else p.grad.clone() for p in parameters]

    mean, variance = gradients(HybridObjective(weight=0.01))
    simple_mean, simple_variance = gradients(PredictionMSE())
    _, kl_variance = gradients(PosteriorKL())
    torch.testing.assert_close(mean, simple_mean)
    assert simple_variance is None or not simple_variance.any()
    torch.testing.assert_close(variance, 0.01 * 50 * kl_variance)
    pred = model.predict(x_0, t, eps)
    expected = PredictionMSE()(model, pred) + 0.01 * 50 * PosteriorKL()(model, pred)
    torch.testing.assert_close(HybridObjective(weight=0.01)(model, pred), expected)


def test_x0_mse_weight_of_the_hybrid_objective():
    model = Denoiser(VarianceNetwork(50), LinearSchedule(50), EpsParametrization(), variance="learned")
    t = torch.arange(2, 51)
    expected = model.schedule.snr(t) + 0.001 * 50 * kl_weight(model.schedule, t)
    torch.testing.assert_close(weight_on_x0_mse(HybridObjective(), model), expected, rtol=1e-6, atol=0)


class Huber(Objective):
    def __call__(self, denoiser, pred):
        return torch.nn.functional.huber_loss(pred.x0_hat, pred.x_0, reduction="none").flatten(1).mean(1)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
def test_x0_mse_weight_of_each_objective(parametrization, variance):
    schedule = LinearSchedule(num_steps=100)
    denoiser = Denoiser(TinyNetwork(), schedule, parametrization, variance)
    t = torch.arange(2, 101)
    snr, w_t = schedule.snr(t), kl_weight(schedule, t, variance)
    expected = {
        X0MSE(): torch.ones_like(snr),
        X0MSE(KLWeighting()): w_t,
        X0MSE(SNRWeighting()): snr,
        X0MSE(MinSNRWeighting(3)): snr.clamp(max=3),
        PosteriorKL(): w_t,
        Huber(): torch.full_like(snr, 0.5),
    }
    if isinstance(parametrization, EpsParametrization):
        expected[PredictionMSE()] = snr
    if isinstance(parametrization, VParametrization):
        expected[PredictionMSE()] = 1 / schedule.one_minus_alpha_bar(t)
    for objective, weight in expected.items():
        assert torch.allclose(weight_on_x0_mse(objective, denoiser), weight, rtol=1e-7), type(objective).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_loss_is_the_weighted_mean_of_the_objective(dtype):
    class Fixed(UniformTimesteps):
        def sample(self, batch_size, num_steps, generator=None):
            return torch.tensor([2, 5, 9, 20]), torch.tensor([0.5, 1.0, 2.0, 0.5], dtype=torch.float64)

    denoiser = tiny_denoiser().to(dtype)
    x_0 = torch.rand(4, 1, 4, 4, dtype=dtype) * 2 - 1
    torch.manual_seed(3)
    result = training_loss(denoiser, x_0, X0MSE(KLWeighting()), Fixed())
    torch.manual_seed(3)
    pred = denoiser.predict(x_0, torch.tensor([2, 5, 9, 20]), torch.randn_like(x_0))
    losses = kl_weight(denoiser.schedule, pred.t) * ((pred.x0_hat - x_0).double() ** 2).flatten(1).mean(1)
    torch.testing.assert_close(result.losses, losses, rtol=1e-5, atol=0)
    expected = (torch.tensor([0.5, 1.0, 2.0, 0.5]) * losses).mean()
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-5)
    assert result.loss.dtype == torch.float64  # like the losses of X0MSE
    result.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in denoiser.parameters())


def test_training_loss_defaults_to_l_simple():
    denoiser, x_0 = tiny_denoiser(), torch.rand(4, 1, 4, 4)
    torch.manual_seed(0)
    default = training_loss(denoiser, x_0).loss
    torch.manual_seed(0)
    assert torch.equal(default, training_loss(denoiser, x_0, PredictionMSE(), UniformTimesteps()).loss)


def test_training_loss_refuses_integers():
    with pytest.raises(TypeError, match=r"x_0 must be floating point, .*; its dtype is torch.uint8"):
        training_loss(tiny_denoiser(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("simple", [PosteriorKL(), HybridObjective()])
def test_the_simple_part_of_a_hybrid_trains_the_mean_only(simple):
    with pytest.raises(
        ValueError, match=f"simple = {type(simple).__name__} of HybridObjective trains the variance too"
    ):
        HybridObjective(simple=simple)


@pytest.mark.parametrize("kind", [PosteriorKL, HybridObjective])
def test_a_decoder_is_filled_in_where_there_is_none(kind):
    own, other = DiscretizedGaussian(17), GaussianDecoder()
    assert kind().with_decoder(other).decoder is other
    assert kind(decoder=own).with_decoder(other).decoder is own
    assert X0MSE().with_decoder(other).decoder is None


@pytest.mark.parametrize("objective", [X0MSE(), PredictionMSE()], ids=lambda o: type(o).__name__)
def test_objectives_of_the_mean_refuse_a_learned_variance(objective):
    objective.check(tiny_denoiser())
    with pytest.raises(ValueError, match=f"variance = 'learned' is not trained by {type(objective).__name__}"):
        objective.check(learned_variance_denoiser())


def test_objectives_of_the_variance_accept_a_learned_one():
    PosteriorKL().check(learned_variance_denoiser())
    HybridObjective().check(learned_variance_denoiser())
    for weight in (0, -0.5):
        with pytest.raises(ValueError, match=f"weight = {weight} of HybridObjective must be positive"):
            HybridObjective(weight=weight)
