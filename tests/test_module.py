import itertools
import json

import lightning
import pytest
import torch
from conftest import TinyNetwork
from helpers import Few, compile_without_code, digits, tiny_module, trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lit_ddpm import (
    DDPM,
    X0MSE,
    DiscretizedGaussian,
    EpsParametrization,
    GaussianDecoder,
    KLWeighting,
    LogSNRSchedule,
    PosteriorKL,
    PredictionMSE,
    StratifiedTimesteps,
    UNet,
    UniformTimesteps,
    VParametrization,
)
from lit_ddpm.callbacks import EMA, Performance, SampleGrid


def same_weights(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


class Recorder(lightning.Callback):
    """What training saw: the losses, and the input of every call of the network."""

    def __init__(self):
        self.losses, self.inputs, self.logged = [], [], {}

    def on_fit_start(self, trainer, module):
        def keep(network, args):
            if module.training:
                self.inputs.append(args[0].detach().clone())

        module.denoiser.network.register_forward_pre_hook(keep)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}


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


def test_both_forms_are_about_t_from_two_on():
    module = tiny_module()
    x_0 = torch.randint(0, 17, (4, 1, 8, 8)) / 8 - 1
    for t, expected in (([1, 1, 1, 1], 0), ([1, 5, 1, 9], 4)):
        pred = module.denoiser.predict(x_0, torch.tensor(t), torch.randn_like(x_0))
        forms = module._both_forms(pred, torch.ones(4, dtype=torch.float64))
        assert len(forms) == expected
    later = module.denoiser.predict(x_0[[1, 3]], torch.tensor([5, 9]), pred.eps[[1, 3]])
    assert float(forms["train/kl"]) == pytest.approx(float(PosteriorKL()(module.denoiser, later).mean()), rel=1e-5)


def test_micro_batches_epochs_and_ranks_draw_differently_and_repeat_exactly():
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


def test_resuming_after_an_epoch_is_the_same_run(tmp_path):
    def make():
        torch.manual_seed(0)
        network = UNet(width=16, num_blocks=1, attention_levels=[], dropout=0.3)
        return tiny_module(
            network=network,
            timesteps=StratifiedTimesteps(),
            lr_scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-3, total_steps=20),
        )

    whole = make()
    full = trainer(max_epochs=3, callbacks=[EMA(0.9)])
    full.fit(whole, digits())
    first = trainer(max_epochs=2, callbacks=[EMA(0.9)], enable_checkpointing=True)
    first.fit(make(), digits())
    checkpoint = first.checkpoint_callback.best_model_path
    second, resumed = trainer(max_epochs=3, callbacks=[EMA(0.9)]), make()
    second.fit(resumed, digits(), ckpt_path=checkpoint, weights_only=True)
    assert same_weights(whole, resumed)
    assert same_weights(full.callbacks[0]._average_model, second.callbacks[0]._average_model)
    # The third validation knew what the second had found; validating a checkpoint again knows what its own did.
    assert full.callback_metrics["val/bpd"] == second.callback_metrics["val/bpd"]
    (again,) = trainer().validate(make(), digits(), checkpoint, verbose=False, weights_only=True)
    assert again["val/bpd"] == pytest.approx(float(first.callback_metrics["val/bpd"]), abs=1e-6)
    assert whole._used_moment is not None
    assert not torch.equal(whole._used_moment, whole._found_moment)


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_the_bound_is_the_same_on_any_number_of_processes(devices):
    """50 images on 3 processes in batches of 7: a repeated image makes the shares equal, and must not count."""
    results = []
    for count in (1, devices):
        strategy = "auto" if count == 1 else "ddp_fork"
        (result,) = trainer(devices=count, strategy=strategy).test(tiny_module(), Few(eval_batch_size=7), verbose=False)
        results.append(result)
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, abs=1e-5), key


def test_the_ledger_is_printed_logged_and_written(capsys, tmp_path):
    (result,) = trainer().test(tiny_module(), Few(), verbose=False)
    assert "per-pixel histogram" in capsys.readouterr().out
    saved = json.loads((tmp_path / "ledger.json").read_text())
    assert result["test/bpd"] == pytest.approx(saved["terms"]["total"]["value"], rel=1e-6)
    assert result["test/bpd_histogram"] == pytest.approx(saved["baseline"]["value"], rel=1e-6)
    names = ("bpd_prior", "bpd_diffusion", "bpd_reconstruction", "bpd_se_images", "bpd_se_noise")
    assert {f"test/{name}" for name in names} <= set(result)
    assert saved["num_images"] == 50
    assert saved["num_calls"] == 20
    assert sum(result[f"test/{name}"] for name in names[:3]) == pytest.approx(result["test/bpd"], rel=1e-6)


def test_the_bound_does_not_depend_on_the_batch_size():
    bits = [trainer().test(tiny_module(), Few(eval_batch_size=n), verbose=False)[0]["test/bpd"] for n in (50, 7)]
    assert bits[0] == pytest.approx(bits[1], abs=1e-5)


def test_real_valued_data_is_measured_in_nats():
    module = tiny_module(decoder=GaussianDecoder())
    (result,) = trainer().test(module, Few(), verbose=False)
    assert "test/nats_per_dim" in result
    assert not any("bpd" in key for key in result)


def test_the_decoder_follows_the_data():
    module = tiny_module(objective=PosteriorKL())
    trainer(max_steps=1, max_epochs=-1).fit(module, digits())
    assert module.decoder.levels == 17
    assert module.objective.decoder is module.decoder
    assert module.image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": DiscretizedGaussian(256)}, "decoder has levels = 256 .*DigitsDataModule have levels = 17"),
        ({"network": UNet(in_channels=3)}, r"in_channels = 3 of UNet .* image_shape = \[1, 8, 8\]"),
        ({"network": UNet(out_channels=2)}, "out_channels = 2 of UNet .*VParametrization with variance='posterior'"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_training(settings, message):
    recorder = Recorder()
    with pytest.raises(ValueError, match=message):
        trainer(callbacks=recorder).fit(tiny_module(**settings), digits())
    assert recorder.losses == []


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="num_val_timesteps = 1"):
        tiny_module(num_val_timesteps=1)
    with pytest.raises(ValueError, match="image_shape is unknown until"):
        tiny_module().sample(4)
    with pytest.raises(ValueError, match=r"returned \[4, 2, 8, 8\] for images of \[4, 1, 8, 8\]"):
        tiny_module(network=nn.Sequential()).denoiser.__class__(
            Wide(), LogSNRSchedule(num_steps=20), VParametrization()
        )(torch.zeros(4, 1, 8, 8), 3)


class Wide(nn.Module):
    def forward(self, x_t, t):
        return torch.cat([x_t, x_t], dim=1)


class Explode(lightning.Callback):
    """Makes the gradients of some steps infinite, whose own losses are fine."""

    def __init__(self, steps):
        self.steps = steps

    def on_after_backward(self, trainer, module):
        if trainer.global_step in self.steps:
            module.denoiser.network.conv.weight.grad.fill_(float("inf"))


class NaNAt(DDPM):
    """Whose images are not finite at one step."""

    def unpack_batch(self, batch):
        x_0, cond = super().unpack_batch(batch)
        return (x_0 * float("nan") if self.trainer.training and self.trainer.global_step == 5 else x_0), cond


def test_steps_that_are_not_finite_are_left_out_and_counted():
    module, recorder = tiny_module(NaNAt), Recorder()
    before = []

    class Weights(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            before.append(module.denoiser.network.conv.weight.detach().clone())

    run = trainer(max_epochs=3, callbacks=[Explode({2}), Weights(), recorder, EMA(0.9)])
    with pytest.warns(UserWarning, match=r"not finite at step 5, at learning rate 0.0002, for the losses at t = \[\d"):
        run.fit(module, digits())
    assert [bool(torch.equal(a, b)) for a, b in itertools.pairwise(before)] == [i in (1, 4) for i in range(11)]
    assert module.skipped_steps == 2
    assert recorder.logged["train/skipped_steps"] == 2
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


def test_too_many_steps_that_are_not_finite_stop_training_and_a_good_checkpoint_remains(tmp_path):
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1)
    run = trainer(callbacks=[Explode({3, 4, 6}), checkpoints], limit_val_batches=0, enable_checkpointing=True)
    with pytest.raises(
        FloatingPointError, match=r"not finite at step 6, at learning rate 0.0002: .*max_skipped_steps = 2 "
    ):
        run.fit(tiny_module(max_skipped_steps=2), digits())
    (path,) = tmp_path.glob("*.ckpt")
    kept = torch.load(path, weights_only=True)
    assert kept["global_step"] == 6
    assert all(bool(torch.isfinite(weight).all()) for weight in kept["state_dict"].values())


def test_in_float16_a_step_counts_only_when_no_scale_is_left_to_try():
    """Losses are scaled as on a GPU; the scale begins at 2 ** 16 and each overflow halves it."""
    module = tiny_module()
    precision = MixedPrecision("16-mixed", device="cpu")
    trainer(max_epochs=1, callbacks=[Explode({1, 2})], plugins=[precision]).fit(module, digits())
    assert precision.scaler.get_scale() == 2**14
    assert module.skipped_steps == 0
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())

    run = trainer(max_epochs=5, callbacks=[Explode(range(100))], plugins=[MixedPrecision("16-mixed", device="cpu")])
    with pytest.raises(FloatingPointError, match=r"not finite at step 18, .*max_skipped_steps = 2 "):
        run.fit(tiny_module(max_skipped_steps=2), digits())


def test_max_skipped_steps_is_not_negative():
    with pytest.raises(ValueError, match="max_skipped_steps = -1"):
        tiny_module(max_skipped_steps=-1)


class Poison(lightning.Callback):
    """Breaks the weights themselves after a step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            with torch.no_grad():
                module.denoiser.network.conv.weight.fill_(float("nan"))


def test_broken_weights_are_not_saved_over_good_ones(tmp_path):
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1)
    run = trainer(callbacks=[Poison(), checkpoints], limit_val_batches=0, enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match=r"1 weights are not finite after step 4, .*conv\.weight.*kept"):
        run.fit(tiny_module(), digits())
    (path,) = tmp_path.glob("*.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 4


# --- checkpoints


def saved(module, path="module.ckpt", data=None):
    run = trainer(max_steps=1, max_epochs=-1)
    run.fit(module, data or digits())
    run.save_checkpoint(path)
    return path


def test_a_module_built_in_python_loads_safely_and_whole():
    network = UNet(width=16, num_blocks=1, attention_levels=[], multipliers=(1, 2))
    module = tiny_module(
        network=network, objective=X0MSE(KLWeighting()), variance="beta", decoder=DiscretizedGaussian(17)
    )
    path = saved(module)
    torch.load(path, weights_only=True)
    loaded = DDPM.load_from_checkpoint(path, weights_only=True)
    assert same_weights(loaded, module)
    assert loaded.denoiser.variance == "beta"
    assert loaded.denoiser.schedule.num_steps == 20
    assert isinstance(loaded.objective.weighting, KLWeighting)
    assert loaded.sampler.chunk_size == 8
    torch.testing.assert_close(loaded.sample(3, seed=1), module.sample(3, seed=1))


def test_a_foreign_network_is_given_again():
    module = tiny_module()
    path = saved(module)
    with pytest.raises(ValueError, match=r"does not fit the network \(saved without its network: pass them"):
        DDPM.load_from_checkpoint(path, weights_only=True)
    loaded = DDPM.load_from_checkpoint(path, weights_only=True, network=TinyNetwork(num_steps=20))
    assert same_weights(loaded, module)
    assert loaded.denoiser.schedule.num_steps == 20


class Mine(DDPM):
    """A subclass with settings of its own."""

    def __init__(self, channels: int = 1, **kwargs):
        super().__init__(network=TinyNetwork(channels, num_steps=20), **kwargs)


def test_a_loaded_module_knows_what_an_image_is_like():
    loaded = DDPM.load_from_checkpoint(saved(tiny_module()), weights_only=True, network=TinyNetwork(num_steps=20))
    assert loaded.image_shape == (1, 8, 8)
    assert loaded.levels == 17
    assert DDPM().levels == 256


def test_training_images_that_the_decoder_does_not_know_are_refused_at_once():
    recorder = Recorder()
    loader = torch.utils.data.DataLoader(torch.rand(16, 1, 8, 8), batch_size=8)
    with pytest.raises(ValueError, match="levels = 256 values"):
        trainer(callbacks=recorder).fit(tiny_module(objective=PosteriorKL()), loader)
    assert recorder.losses == []
    trainer(callbacks=recorder, max_epochs=1).fit(tiny_module(objective=X0MSE()), loader)
    assert len(recorder.losses) == 2


def test_a_subclass_loads_with_its_own_settings():
    lightning.seed_everything(0, verbose=False)
    module = Mine(channels=1, schedule=LogSNRSchedule(num_steps=20), parametrization=VParametrization())
    loaded = Mine.load_from_checkpoint(saved(module), weights_only=True)
    assert same_weights(loaded, module)
    assert loaded.denoiser.schedule.num_steps == 20


def test_weights_that_do_not_fit_are_named():
    path = saved(tiny_module(network=UNet(width=16, num_blocks=1)))
    with pytest.raises(
        ValueError, match=r"weights differ, the first is denoiser\.network\S+, \[64, 16\] in .* and \[128, 32\]"
    ):
        trainer().test(tiny_module(network=UNet(width=32, num_blocks=1)), digits(), ckpt_path=path, weights_only=True)


def test_defaults_are_the_model_of_ho_et_al():
    module = DDPM()
    assert isinstance(module.denoiser.parametrization, EpsParametrization)
    assert isinstance(module.objective, PredictionMSE)
    assert module.denoiser.schedule.num_steps == 1000
    assert module.configure_optimizers().param_groups[0]["lr"] == 2e-4


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
    """The same timesteps image by image, however they are dealt to batches."""

    def __init__(self):
        self.seen = 0

    def sample(self, batch_size, num_steps, generator=None):
        self.seen += batch_size
        t = torch.arange(self.seen - batch_size, self.seen) % num_steps + 1
        return t, torch.ones(batch_size, dtype=torch.float64)


def test_accumulating_is_the_same_as_one_large_batch(monkeypatch):
    """4 x 32 beside 128, of the same timesteps and noise, without dropout."""
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


def test_compiled_and_channels_last_modules_share_their_checkpoints_with_plain_ones(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: (compiled.append(self), compile_without_code(self)))

    def make(**kwargs):
        torch.manual_seed(0)
        return tiny_module(network=UNet(width=16, num_blocks=1, attention_levels=[]), **kwargs)

    fast = {"compile": True, "channels_last": True}
    bounds = {}
    for name, settings, others in (("plain", {}, fast), ("fast", fast, {})):
        path = tmp_path / f"{name}.ckpt"
        run = trainer(max_steps=2, max_epochs=-1, callbacks=[EMA(0.9), Performance()])
        run.fit(make(**settings), digits())
        run.save_checkpoint(path)
        checkpoint = torch.load(path, weights_only=True)
        assert "_orig_mod" not in " ".join(checkpoint["state_dict"])
        assert not set(fast) & set(checkpoint["hyper_parameters"])
        for again in (settings, others):
            module = DDPM.load_from_checkpoint(path, **again)
            assert all(torch.equal(v, checkpoint["state_dict"][k]) for k, v in module.state_dict().items())
            (found,) = trainer().test(module, Few(), verbose=False)
            bounds[name, again is settings] = found["test/bpd"]
            weight = module.denoiser.network.conv_out.weight
            assert weight.is_contiguous(memory_format=torch.channels_last) == bool(again)
    assert len(compiled) == 3
    for name in ("plain", "fast"):
        assert bounds[name, True] == pytest.approx(bounds[name, False], abs=1e-5)
    assert bounds["plain", True] == pytest.approx(bounds["fast", True], abs=1e-3)


@pytest.mark.parametrize(
    ("capabilities", "size", "settings", "precision", "said"),
    [
        ({"avx512_bf16": True}, 28, {}, "32-true", "with --config configs/trainer/bf16.yaml"),
        ({}, 28, {}, "32-true", "with --config configs/trainer/channels_last.yaml"),
        ({}, 28, {"channels_last": True}, "32-true", None),
        ({"avx512_bf16": True}, 28, {}, "bf16-mixed", None),
        ({"avx512_bf16": True}, 8, {}, "32-true", None),
    ],
)
def test_a_fit_says_what_would_be_faster(monkeypatch, caplog, capabilities, size, settings, precision, said):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    run = trainer(max_epochs=1, precision=precision, limit_train_batches=2, limit_val_batches=0)
    module = tiny_module(**settings)
    module.image_shape = (1, size, size)
    images = torch.zeros(4, 1, size, size)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run.fit(module, torch.utils.data.DataLoader(images, batch_size=2))
    assert run.precision == precision
    lines = [message for message in caplog.messages if "would be faster" in message]
    assert (lines[0].endswith(said), len(lines)) == (True, 1) if said else not lines


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_as_lightning_clips_them(precision):
    """By a norm that is known already; Lightning refuses a fused optimizer in mixed precision."""

    class Usual(DDPM):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    weights = []
    for kind, fused in ((DDPM, True), (DDPM, False), (Usual, False)):
        module = tiny_module(kind, optimizer=lambda params, fused=fused: torch.optim.SGD(params, lr=1, fused=fused))
        trainer(max_epochs=1, gradient_clip_val=1e-3, precision=precision).fit(module, digits())
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    unclipped = tiny_module(optimizer=lambda params: torch.optim.SGD(params, lr=1))
    trainer(max_epochs=1, precision=precision).fit(unclipped, digits())
    assert not torch.equal(torch.cat([p.detach().flatten() for p in unclipped.parameters()]), weights[1])
