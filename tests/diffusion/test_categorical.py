"""The posterior mean over pixel levels, as a parametrization."""

import math

import pytest
import torch
from helpers import digits, tiny_module, trainer
from torch import nn

from lit_ddpm import (
    DDPM,
    X0MSE,
    CategoricalParametrization,
    Denoiser,
    DiscretizedGaussian,
    LinearSchedule,
    LogSNRSchedule,
    PosteriorKL,
    PredictionMSE,
    UNet,
    bits_per_dim,
    training_loss,
    variational_bound,
)
from lit_ddpm.likelihood.bound import histogram_nats

LEVELS = 5


class Logits(nn.Module):
    """The same logits for every pixel, ``[C, LEVELS]``."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x_t, t):
        return self.logits.flatten()[None, :, None, None].expand(len(x_t), -1, *x_t.shape[2:])


def denoiser(logits, schedule=None, **kwargs):
    schedule = schedule or LogSNRSchedule(20, log_snr_start=8.0)
    return Denoiser(Logits(logits), schedule, CategoricalParametrization(logits.shape[-1]), **kwargs)


def test_the_estimate_is_the_posterior_mean_of_bayes():
    torch.manual_seed(0)
    logits = torch.randn(2, LEVELS, dtype=torch.float64)
    model, x_t = denoiser(logits), torch.randn(3, 2, 2, 2, dtype=torch.float64)
    for t in (1, 7, 20):
        bar, found = float(model.schedule.alpha_bar(t)), model(x_t, t)
        for index in ((0, 0, 0, 0), (2, 1, 1, 0)):
            joint = [
                math.exp(logits[index[1], k].item() - (float(x_t[index]) - math.sqrt(bar) * level) ** 2 / (2 - 2 * bar))
                for k, level in enumerate((-1, -0.5, 0, 0.5, 1))
            ]
            mean = sum(p * level for p, level in zip(joint, (-1, -0.5, 0, 0.5, 1), strict=True)) / sum(joint)
            assert float(found[index]) == pytest.approx(mean, rel=1e-9, abs=1e-12)


def test_the_logits_of_a_histogram_need_the_bits_of_the_histogram():
    """For independent pixels they are the ideal network, so the bound tends to their entropy as T grows."""
    p = torch.tensor([0.5, 0.2, 0.0, 0.05, 0.25]).double()
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.multinomial(p, 4000, replacement=True, generator=generator).reshape(1000, 1, 2, 2) / 2.0 - 1
    counts = torch.stack([(x_0 == level).sum(0) for level in torch.linspace(-1, 1, LEVELS)])
    code_length = float(bits_per_dim(histogram_nats(counts, x_0), 4).mean())
    totals = []
    for num_steps in (50, 1000):
        schedule = LogSNRSchedule(num_steps, log_snr_start=6.0)
        model = denoiser((p + 1e-9).log()[None], schedule)
        totals.append(float(bits_per_dim(variational_bound(model, x_0, DiscretizedGaussian(LEVELS)).total, 4).mean()))
    assert totals[0] > totals[1]
    assert totals[1] == pytest.approx(code_length, abs=0.03)


@pytest.mark.parametrize("log_snr", [25.0, -25.0])
def test_gradients_at_extreme_noise_are_finite(log_snr):
    schedule = LogSNRSchedule(2, log_snr_start=26.0, log_snr_end=-26.0)
    logits = (20 * torch.randn(1, 256, generator=torch.Generator().manual_seed(0))).requires_grad_()
    parametrization = CategoricalParametrization(256)
    x_t = (torch.randint(0, 256, (4, 1, 3, 3)) / 127.5 - 1).requires_grad_()
    for t in (1, 2):
        x0_hat = parametrization.activation(schedule, logits[..., None, None].expand(4, -1, 3, 3), x_t, t)
        assert float(x0_hat.abs().max()) <= 1 + 1e-6
        gradients = torch.autograd.grad(x0_hat.sum(), [logits, x_t])
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        if t == 1:
            torch.testing.assert_close(x0_hat, x_t, atol=1e-3, rtol=0)


def test_all_objectives_see_the_prediction():
    torch.manual_seed(0)
    model, x_0 = denoiser(torch.randn(1, LEVELS)), torch.randint(0, LEVELS, (4, 1, 2, 2)) / 2.0 - 1
    losses = {}
    for objective in (X0MSE(), PredictionMSE(), PosteriorKL(DiscretizedGaussian(LEVELS))):
        torch.manual_seed(1)
        loss = training_loss(model, x_0, objective)
        assert loss.pred.output.shape == x_0.shape
        losses[type(objective)] = loss.losses
    torch.testing.assert_close(losses[X0MSE], losses[PredictionMSE], check_dtype=False)
    sixfold = Denoiser(Logits(torch.randn(1, LEVELS + 1)), model.schedule, model.parametrization, "learned")
    assert sixfold.outputs == 6
    assert sixfold.p_posterior(x_0, 5).var.shape == x_0.shape


def test_a_fit_with_a_unet(tmp_path):
    module = tiny_module(
        network=UNet(width=8, out_channels=17), parametrization=CategoricalParametrization(17), objective=X0MSE()
    )
    run = trainer(max_epochs=1, enable_checkpointing=True, default_root_dir=str(tmp_path))
    run.fit(module, digits())
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = DDPM.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.denoiser.parametrization.levels == 17
    torch.testing.assert_close(again.sample(2), module.sample(2))


@pytest.mark.parametrize(
    ("levels", "outputs", "message"),
    [
        (16, 16, "levels = 16 of CategoricalParametrization does not fit DigitsDataModule, which has levels = 17"),
        (
            17,
            1,
            "out_channels = 1 of UNet does not fit .*CategoricalParametrization with variance='posterior' needs 17",
        ),
    ],
)
def test_levels_and_outputs_fit_the_data(levels, outputs, message):
    module = tiny_module(
        network=UNet(width=8, out_channels=outputs), parametrization=CategoricalParametrization(levels)
    )
    with pytest.raises(ValueError, match=message):
        trainer().fit(module, digits())


def test_one_level_is_refused():
    with pytest.raises(ValueError, match="levels = 1 of CategoricalParametrization must be at least 2"):
        CategoricalParametrization(1)
    assert Denoiser(nn.Identity(), LinearSchedule(), CategoricalParametrization()).outputs == 256
