"""A variance that the network chooses, the objective that trains it, and timesteps drawn where the loss is."""

import math

import pytest
import torch
from helpers import digits, tiny_module, trainer
from lightning import Callback
from test_cli import DIGITS, error_of
from torch.distributions import Normal, kl_divergence

from lit_ddpm import (
    AncestralSampler,
    Denoiser,
    DiscretizedGaussian,
    EpsParametrization,
    GuidedDenoiser,
    HybridObjective,
    ImportanceTimesteps,
    LinearSchedule,
    LogSNRSchedule,
    PosteriorKL,
    PredictionMSE,
    UNet,
    VParametrization,
    X0Parametrization,
    kl_weight,
    variational_bound,
)
from lit_ddpm.diffusion.gaussian import posterior_coefficients, q_posterior
from lit_ddpm.diffusion.objective import weight_on_x0_mse


class Two(torch.nn.Module):
    """A network of two outputs, the second of which is a number for each timestep."""

    def __init__(self, num_steps=50, channels=1, num_classes=None):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.position = torch.nn.Embedding(num_steps + 1, channels)
        self.num_classes = num_classes

    def forward(self, x_t, t, label=None):
        position = self.position(t)[:, :, None, None].expand_as(x_t)
        return torch.cat([torch.tanh(self.conv(x_t)), position], dim=1)


def denoiser(schedule=None, **kwargs):
    torch.manual_seed(0)
    schedule = schedule or LinearSchedule(50)
    return Denoiser(Two(schedule.num_steps, **kwargs), schedule, VParametrization(), variance="learned").double()


@pytest.mark.parametrize("schedule", [LinearSchedule(50), LogSNRSchedule(num_steps=50)], ids=str)
def test_the_variance_lies_between_the_two_fixed_ones_as_the_output_says(schedule):
    model = denoiser(schedule)
    x_t = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    for position in (-1.0, 0.0, 1.0, 0.37):
        model.network.position.weight.data.fill_(position)
        for t, s in ((30, 29), (30, 10), (2, 1)):
            c = posterior_coefficients(schedule, t, s)
            v = (position + 1) / 2
            expected = math.exp(v * math.log(c.beta) + (1 - v) * math.log(c.var))
            var = model.p_posterior(x_t, t, s).var
            assert var.shape == x_t.shape
            torch.testing.assert_close(var, torch.full_like(x_t, expected), rtol=1e-10, atol=0)
        of_2, beta_1 = float(posterior_coefficients(schedule, 2).var), float(schedule.beta(1))
        expected = beta_1**v * min(of_2, beta_1) ** (1 - v)
        assert float(model.p_posterior(x_t, 1).var.max()) == pytest.approx(expected)


def test_its_ends_are_the_fixed_variances_in_the_bound_and_in_samples():
    x_0 = torch.randint(0, 17, (4, 1, 4, 4)).double() / 8 - 1
    for position, variance in ((-1.0, "posterior"), (1.0, "beta")):
        model = denoiser()
        model.network.position.weight.data.fill_(position)

        class First(torch.nn.Module):
            def __init__(self, network):
                super().__init__()
                self.network = network

            def forward(self, x_t, t):
                return self.network(x_t, t).chunk(2, dim=1)[0]

        fixed = Denoiser(First(model.network), model.schedule, model.parametrization, variance).double()
        found, expected = (variational_bound(m, x_0, DiscretizedGaussian(17)) for m in (model, fixed))
        torch.testing.assert_close(found.diffusion, expected.diffusion, rtol=1e-9, atol=1e-9)
        if variance == "beta":
            torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=1e-9, atol=1e-9)
        sampler = AncestralSampler(10, chunk_size=4)
        # x_T is float32, and so are the first steps' sums.
        torch.testing.assert_close(sampler(model, (4, 1, 4, 4)), sampler(fixed, (4, 1, 4, 4)), rtol=1e-5, atol=1e-5)


def test_the_kl_is_that_of_torch_distributions():
    model = denoiser()
    x_0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([2, 9, 20, 35, 50])
    with torch.no_grad():
        pred = model.predict(x_0, t, eps)
        p = model.p_given_x0_hat(pred.x_t, pred.x0_hat, t, fraction=pred.fraction)
        q = q_posterior(model.schedule, pred.x_t, x_0, t)
        expected = kl_divergence(Normal(q.mean, q.var.sqrt()), Normal(p.mean, p.var.sqrt())).flatten(1).mean(1)
        torch.testing.assert_close(PosteriorKL()(model, pred), expected, rtol=1e-9, atol=1e-12)


def test_the_best_variance_of_an_ideal_denoiser_is_the_one_with_its_errors():
    """Of N(0, tau2) data the KL is least where the variance is sigma_q^2 plus the error of the mean; SGD finds it."""
    schedule, tau2 = LinearSchedule(50), 0.25

    class Ideal(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.position = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x_t, t):
            bar = schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
            mean = tau2 * bar.sqrt() / (tau2 * bar + 1 - bar) * x_t
            return torch.cat([mean, self.position.expand_as(x_t)], dim=1)

    network = Ideal()
    model = Denoiser(network, schedule, X0Parametrization(), variance="learned")
    generator = torch.Generator().manual_seed(0)
    x_0 = 0.5 * torch.randn(20000, 1, 1, 1, dtype=torch.float64, generator=generator)
    t = torch.full((20000,), 5)
    eps = torch.randn(x_0.shape, dtype=torch.float64, generator=generator)
    optimizer = torch.optim.LBFGS([network.position], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = PosteriorKL()(model, model.predict(x_0, t, eps)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    c = posterior_coefficients(schedule, 5)
    error = 1 / (1 / tau2 + float(schedule.snr(5)))  # the variance of x_0 given x_t
    best = float(c.var) + float(c.c_0) ** 2 * error
    found = float(model.p_posterior(x_0[:1], 5).var.detach())
    assert found == pytest.approx(best, rel=0.02)


def test_the_hybrid_trains_the_mean_by_the_simple_loss_and_the_variance_by_the_kl():
    model = denoiser()
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


def test_a_guided_denoiser_keeps_the_variance_with_the_label():
    model = denoiser(num_classes=3)
    x_t, label = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1])
    guided = GuidedDenoiser(model, 2.0).p_posterior(x_t, 20, label=label)
    torch.testing.assert_close(guided.var, model.p_posterior(x_t, 20, label=label).var)


@pytest.mark.parametrize("objective", [HybridObjective(), PosteriorKL()], ids=lambda o: type(o).__name__)
def test_a_learned_variance_trains_is_measured_and_draws(objective):
    module = tiny_module(network=Two(20), variance="learned", objective=objective)
    run = trainer(max_epochs=1, limit_val_batches=1)
    run.fit(module, digits())
    assert math.isfinite(run.callback_metrics["val/bpd"])
    assert "train/kl" in run.callback_metrics
    assert "train/form_gap" not in run.callback_metrics  # the two forms are not one
    assert torch.isfinite(module.sample(3)).all()
    assert module.objective.decoder.levels == 17


def test_the_weight_on_the_x0_mse_of_a_hybrid_is_that_of_both():
    model = Denoiser(Two(50), LinearSchedule(50), EpsParametrization(), variance="learned")
    t = torch.arange(2, 51)
    expected = model.schedule.snr(t) + 0.001 * 50 * kl_weight(model.schedule, t)
    torch.testing.assert_close(weight_on_x0_mse(HybridObjective(), model), expected, rtol=1e-6, atol=0)


def test_what_does_not_fit_a_learned_variance_is_refused(capsys):
    model = Denoiser(Two(50), LinearSchedule(50), VParametrization())
    with pytest.raises(ValueError, match=r"returned \[1, 2, 4, 4\] .*variance='posterior' needs \[1, 1, 4, 4\]"):
        model(torch.zeros(1, 1, 4, 4), 3)
    fixed = Denoiser(UNet(width=4), LinearSchedule(50), VParametrization())
    pred = fixed.predict(torch.zeros(1, 1, 8, 8), torch.tensor([3]), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="HybridObjective trains a variance: set variance to learned, not 'posterior'"):
        HybridObjective()(fixed, pred)
    with pytest.raises(ValueError, match="weight = 0 of HybridObjective must be positive"):
        HybridObjective(weight=0)
    assert "is not trained by X0MSE" in error_of(capsys, [*DIGITS, "--model.variance=learned"])
    message = error_of(capsys, [*DIGITS, "--model.variance=learned", "--model.objective=PosteriorKL"])
    assert "out_channels = 1 of UNet does not fit images of image_shape = [1, 8, 8]" in message
    assert "variance='learned' needs 2" in message


# --- importance


def learnt(num_steps=8, history=3, **kwargs):
    timesteps = ImportanceTimesteps(history, **kwargs)
    timesteps.sample(1, num_steps)
    for _ in range(history):
        timesteps.update(torch.arange(1, num_steps + 1), torch.arange(1, num_steps + 1).double())
    return timesteps


def test_timesteps_are_uniform_until_every_one_was_seen_and_then_as_the_losses():
    timesteps = ImportanceTimesteps(history=2)
    assert torch.equal(timesteps.sample(100, 8)[1], torch.ones(100, dtype=torch.float64))
    timesteps.update(torch.arange(1, 8).repeat(2), torch.rand(14))
    assert torch.equal(timesteps.probabilities(8), torch.full((8,), 1 / 8, dtype=torch.float64))
    expected = 0.999 * torch.arange(1, 9).double() / 36 + 0.001 / 8
    torch.testing.assert_close(learnt().probabilities(8), expected)


def test_only_the_last_losses_count():
    timesteps = learnt()
    timesteps.update(torch.full((3,), 1), torch.full((3,), 100.0))
    assert float(timesteps.probabilities(8)[0]) == pytest.approx(0.999 * 100 / 135 + 0.001 / 8)


def test_weighted_averages_are_unbiased():
    timesteps = learnt()
    value = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], dtype=torch.float64)
    t, weight = timesteps.sample(200_000, 8, torch.Generator().manual_seed(0))
    estimates = weight * value[t - 1]
    assert float(estimates.mean()) == pytest.approx(float(value.mean()), abs=4 * float(estimates.std()) / 200_000**0.5)
    assert float(weight.mean()) == pytest.approx(1, abs=0.02)


def test_what_was_learnt_is_in_the_checkpoint_and_goes_on():
    def module():
        return tiny_module(timesteps=ImportanceTimesteps(history=2))

    whole = module()
    trainer(max_epochs=4, limit_val_batches=0).fit(whole, digits())
    half = module()
    run = trainer(max_epochs=2, limit_val_batches=0, enable_checkpointing=True)
    run.fit(half, digits())
    checkpoint = run.checkpoint_callback.best_model_path
    rest = module()
    trainer(max_epochs=4, limit_val_batches=0).fit(rest, digits(), ckpt_path=checkpoint, weights_only=True)
    assert torch.equal(rest.timesteps._losses, whole.timesteps._losses)
    assert torch.equal(rest.timesteps._counts, whole.timesteps._counts)
    assert int(whole.timesteps._counts.sum()) == 16 * 256
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name])


def test_processes_learn_from_the_losses_of_all(tmp_path):
    class Save(Callback):
        def on_fit_end(self, trainer, pl_module):
            torch.save(pl_module.timesteps.state_dict(), tmp_path / f"{trainer.global_rank}.pt")

    run = trainer(max_epochs=1, limit_val_batches=0, devices=2, strategy="ddp_fork", callbacks=[Save()])
    run.fit(tiny_module(timesteps=ImportanceTimesteps(history=2)), digits(batch_size=128))
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(states[0]["losses"], states[1]["losses"])
    assert int(states[0]["counts"].sum()) == 4 * 256


def test_bad_settings_of_importance_are_refused():
    with pytest.raises(ValueError, match="history = 0 of ImportanceTimesteps must be at least 1"):
        ImportanceTimesteps(history=0)
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=rf"uniform_share = {share} of ImportanceTimesteps must be in \(0, 1\]"):
            ImportanceTimesteps(uniform_share=share)
