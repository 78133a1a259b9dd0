import math
from dataclasses import replace

import lightning
import pytest
import torch
from helpers import Recorder, TinyNetwork, VarianceNetwork, digits, fit, tiny_module, trainer
from torch import nn

from lit_ddpm import (
    DDPM,
    X0MSE,
    DiscretizedGaussian,
    EpsParametrization,
    Evaluation,
    HybridObjective,
    ImportanceTimesteps,
    KLWeighting,
    LogSNRSchedule,
    Objective,
    PosteriorKL,
    PredictionMSE,
    UNet,
    UniformTimesteps,
    VParametrization,
)
from lit_ddpm.callbacks import EMA, ChannelsLast, SampleGrid
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.diffusion.objective import kl_forms, weight_on_x0_mse
from lit_ddpm.training.kl_metrics import kl_metrics


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize(
    "objective", [PosteriorKL(), X0MSE(), X0MSE(KLWeighting()), PredictionMSE()], ids=lambda o: type(o).__name__
)
def test_every_step_calls_the_network_once_and_logs_both_forms(objective, variance):
    recorder = Recorder()
    trainer(callbacks=recorder, max_steps=3, max_epochs=-1).fit(
        tiny_module(objective=objective, variance=variance), digits()
    )
    assert len(recorder.inputs) == len(recorder.losses) == 3
    assert set(recorder.logged) == {
        "train/loss",
        "train/kl",
        "train/kl_from_x0_mse",
        "train/form_gap",
        "train/x0_mse",
    }
    assert recorder.logged["train/form_gap"] < 1e-9
    assert recorder.logged["train/kl"] == pytest.approx(recorder.logged["train/kl_from_x0_mse"], rel=1e-6)


def test_both_forms_use_timesteps_from_two():
    module = tiny_module()
    x_0 = torch.randint(0, 17, (4, 1, 8, 8)) / 8 - 1
    for t, expected in (([1, 1, 1, 1], 0), ([1, 5, 1, 9], 4)):
        pred = module.denoiser.predict(x_0, torch.tensor(t), torch.randn_like(x_0))
        metrics = kl_metrics(module.denoiser, pred, torch.ones(4, dtype=torch.float64))
        assert (0 if metrics is None else len(metrics.values)) == expected
    later = module.denoiser.predict(x_0[[1, 3]], torch.tensor([5, 9]), pred.eps[[1, 3]])
    assert float(metrics.values["train/kl"]) == pytest.approx(
        float(PosteriorKL()(module.denoiser, later).mean()), rel=1e-5
    )


class LossOfT(Objective):
    """A loss of t at timestep t."""

    def __call__(self, denoiser, pred):
        return pred.t + 0 * pred.output.flatten(1).mean(1)


class InProportionToT(UniformTimesteps):
    def sample(self, batch_size, num_steps, generator=None):
        p = torch.arange(1, num_steps + 1, dtype=torch.float64) / (num_steps * (num_steps + 1) / 2)
        row = torch.multinomial(p, batch_size, replacement=True)
        return row + 1, 1 / (num_steps * p[row])


def test_the_loss_is_unbiased_under_importance_sampling():
    """Draws in proportion to the loss have no variance: each batch gives the mean over t = 1..20, which is 10.5."""
    recorder, optimizer = Recorder(), lambda params: torch.optim.SGD(params, lr=0.0)
    module = tiny_module(objective=LossOfT(), timesteps=InProportionToT(), optimizer=optimizer)
    fit(recorder, module=module, max_epochs=1)
    assert recorder.losses == pytest.approx([10.5] * 4)
    assert recorder.logged["train/loss"] == pytest.approx(10.5)


def test_noise_depends_on_batch_epoch_and_rank():
    runs = []
    for rank in (0, 0, 1):
        recorder, module = Recorder(), tiny_module()
        type(module).global_rank = property(lambda self, rank=rank: rank)
        try:
            trainer(callbacks=recorder, accumulate_grad_batches=2).fit(module, digits())
        finally:
            del type(module).global_rank
        runs.append(recorder.inputs)
    noises = [tuple(x[0].flatten().tolist()) for x in runs[0] + runs[2]]
    assert len(runs[0]) == 8
    assert len(set(noises)) == len(noises)
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))


def test_callbacks_do_not_change_training(tmp_path):
    losses = []
    for callbacks in ([], [EMA(0.9), SampleGrid(num_images=4)]):
        recorder = Recorder()
        net = UNet(width=16, num_blocks=1, attention_levels=[], dropout=0.3)
        fitting = trainer(callbacks=[recorder, *callbacks], limit_val_batches=1 if callbacks else 0)
        lightning.seed_everything(0, verbose=False)
        module = tiny_module(network=net)
        torch.manual_seed(5)
        for p in net.parameters():
            nn.init.normal_(p, std=0.05)
        fitting.fit(module, digits())
        losses.append(recorder.losses)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


def test_the_decoder_follows_the_data():
    module = tiny_module(objective=PosteriorKL())
    trainer(max_steps=1, max_epochs=-1).fit(module, digits())
    assert module.decoder.levels == 17
    assert module.training_objective.decoder.levels == 17
    assert module.objective.decoder is None
    assert module.data.image_shape == (1, 8, 8)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="num_val_timesteps = 1"):
        tiny_module(evaluation=Evaluation(1))
    with pytest.raises(ValueError, match="image_shape is unknown until"):
        tiny_module().sample(4)
    with pytest.raises(ValueError, match=r"returned \[4, 2, 8, 8\] for images of \[4, 1, 8, 8\]"):
        tiny_module(network=nn.Sequential()).denoiser.__class__(
            Wide(), LogSNRSchedule(num_steps=20), VParametrization()
        )(torch.zeros(4, 1, 8, 8), 3)


class Wide(nn.Module):
    def forward(self, x_t, t):
        return torch.cat([x_t, x_t], dim=1)


def test_images_outside_the_decoder_levels_are_refused():
    recorder = Recorder()
    loader = torch.utils.data.DataLoader(torch.rand(16, 1, 8, 8), batch_size=8)
    with pytest.raises(ValueError, match="levels = 256 values"):
        trainer(callbacks=recorder).fit(tiny_module(objective=PosteriorKL()), loader)
    assert recorder.losses == []
    trainer(callbacks=recorder, max_epochs=1).fit(tiny_module(objective=X0MSE()), loader)
    assert len(recorder.losses) == 2


def test_defaults_are_the_model_of_ho_et_al():
    module = DDPM()
    assert isinstance(module.denoiser.parametrization, EpsParametrization)
    assert isinstance(module.objective, PredictionMSE)
    assert module.denoiser.schedule.num_steps == 1000
    settings = module.configure_optimizers().param_groups[0]
    assert (settings["lr"], settings["weight_decay"]) == (2e-4, 0)
    assert module.denoiser.clip
    assert module.sampling_denoiser is module.denoiser  # without guidance
    assert module.levels == 256


def test_samples_are_those_of_seed_0_from_the_first_image():
    module = tiny_module()
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    assert torch.equal(module.sample(3), module.sample(3, seed=0, first_index=0))


def test_speed_settings_are_off_by_default():
    network = UNet(width=16, num_blocks=1, attention_levels=[])
    tiny_module(network=network)
    assert network._compiled_call_impl is None
    assert all(p.is_contiguous() for p in network.parameters())


def test_a_batch_may_be_a_tensor():
    images = torch.randint(0, 256, (16, 1, 8, 8)) / 127.5 - 1
    loader = torch.utils.data.DataLoader(images, batch_size=8)
    run = trainer(max_epochs=1)
    run.fit(tiny_module(), loader, loader)
    assert torch.isfinite(run.callback_metrics["val/bpd"])


def test_bf16_measures_the_same_kl_as_float32():
    values = []
    for precision in ("32-true", "bf16-mixed"):
        recorder = Recorder()
        torch.manual_seed(0)
        net = UNet(width=16, num_blocks=1, attention_levels=[], dropout=0.0)
        for p in net.parameters():
            nn.init.normal_(p, std=0.1)
        run = trainer(callbacks=recorder, precision=precision, max_steps=1, max_epochs=-1)
        run.fit(tiny_module(network=net), digits())
        values.append(recorder.logged)
    assert values[1]["train/kl"] == pytest.approx(values[0]["train/kl"], rel=0.01)
    assert values[1]["train/kl"] != values[0]["train/kl"]
    assert values[1]["train/form_gap"] < 1e-9


class GivenTimesteps(UniformTimesteps):
    """Gives image i the same timestep for any batch size."""

    def __init__(self):
        self.seen = 0

    def sample(self, batch_size, num_steps, generator=None):
        self.seen += batch_size
        t = torch.arange(self.seen - batch_size, self.seen) % num_steps + 1
        return t, torch.ones(batch_size, dtype=torch.float64)


def test_accumulating_is_the_same_as_one_large_batch(monkeypatch):
    """4 batches of 32 and one of 128, with the same timesteps and noise and without dropout."""
    images = torch.randint(0, 17, (128, 1, 8, 8)) / 8 - 1
    noise = torch.randn(128, 1, 8, 8)
    weights = []
    for accumulate in (1, 4):
        left = iter(noise.split(128 // accumulate))
        monkeypatch.setattr(torch, "randn_like", lambda x, left=left: next(left))
        torch.manual_seed(0)
        network = UNet(width=16, num_blocks=1, attention_levels=[], dropout=0.0)
        module = tiny_module(
            network=network,
            timesteps=GivenTimesteps(),
            decoder=DiscretizedGaussian(17),
            objective=PosteriorKL(),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        )
        before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
        run = trainer(max_epochs=1, accumulate_grad_batches=accumulate, limit_val_batches=0)
        run.fit(module, torch.utils.data.DataLoader(images, batch_size=128 // accumulate))
        assert run.global_step == 1
        weights.append(nn.utils.parameters_to_vector(network.parameters()).detach())
    change = weights[0] - before
    assert float((weights[1] - weights[0]).norm() / change.norm()) < 1e-5


@pytest.mark.parametrize("objective", [HybridObjective(), PosteriorKL()], ids=lambda o: type(o).__name__)
def test_a_learned_variance_trains_and_samples(objective):
    module = tiny_module(network=VarianceNetwork(20), variance="learned", objective=objective)
    run = trainer(max_epochs=1, limit_val_batches=1)
    run.fit(module, digits())
    assert math.isfinite(run.callback_metrics["val/bpd"])
    assert "train/kl" in run.callback_metrics
    assert "train/form_gap" not in run.callback_metrics  # the two forms differ
    assert torch.isfinite(module.sample(3)).all()
    assert module.training_objective.decoder.levels == 17


def test_last_kl_is_the_kl_of_the_batch():
    module = tiny_module()
    fit(module=module, max_epochs=1)
    module.train(False)
    t = torch.tensor([1, 5, 20])
    pred = module.denoiser.predict(torch.zeros(3, 1, 8, 8), t, torch.randn(3, 1, 8, 8))
    metrics = kl_metrics(module.denoiser, pred, torch.ones(3))
    assert metrics.t.tolist() == [5, 20]
    assert torch.equal(metrics.kl, kl_forms(module.denoiser, replace(pred, t=t.clamp(min=2)))[0][1:])


def test_x0_mse_weight_of_the_default_objective():
    module = tiny_module()
    assert len(weight_on_x0_mse(module.objective, module.denoiser)) == 19


def test_a_fit_starts_anew_and_other_commands_do_not():
    module = tiny_module(timesteps=ImportanceTimesteps(history=1))
    fit = {"max_epochs": 1, "limit_val_batches": 1}
    trainer(**fit).fit(module, digits())
    losses, moments = module.timesteps._losses.clone(), module.evaluation.state_dict()
    trainer(limit_val_batches=1).validate(module, digits(), verbose=False)
    assert torch.equal(module.timesteps._losses, losses)
    assert module.evaluation.state_dict()["initial_moment"] is moments["initial_moment"]
    trainer(**fit, limit_train_batches=0).fit(module, digits())
    assert len(module.timesteps._losses) == 0
    assert module.evaluation.state_dict() == {"initial_moment": None, "found_moment": None}


def test_what_unpack_batch_draws_is_a_function_of_the_step():
    class Random(DDPM):
        drawn = ()

        def unpack_batch(self, batch):
            self.drawn += (float(torch.rand(())),)
            return super().unpack_batch(batch)

    class Draws(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.rand(3)

    runs = []
    for callbacks in ([], [Draws()]):
        module = tiny_module(Random)
        trainer(max_epochs=1, limit_val_batches=0, callbacks=callbacks).fit(module, digits())
        runs.append(module.drawn)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0])


def test_a_loaded_module_has_the_decoder_of_its_data():
    run = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(tiny_module(), digits())
    run.save_checkpoint("a.ckpt")
    loaded = DDPM.load_from_checkpoint("a.ckpt", network=TinyNetwork(num_steps=20))
    assert loaded.decoder.levels == 17


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channels_last_for_any_number_of_dimensions(dims):
    network = UNet(dims=dims, width=8, multipliers=[1], num_blocks=1, attention_levels=[])
    module = DDPM(network)
    ChannelsLast().setup(trainer(), module, "test")
    x_0, eps = torch.randn(2, 2, 1, *[4] * dims)
    prediction = module.denoiser.predict(x_0, torch.tensor([3, 4]), eps)
    assert prediction.x0_hat.shape == x_0.shape
