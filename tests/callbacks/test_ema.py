"""Averaged weights in training, validation, checkpoints and samples."""

import warnings

import lightning
import pytest
import torch
from helpers import FewDigits, TinyNetwork, digits, fit, tiny_module, trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy

from lit_ddpm import DDPM
from lit_ddpm.callbacks import EMA, SampleGrid
from lit_ddpm.training.averaging import averaged_weights


def weight(module):
    return module.denoiser.network.conv.weight.detach().clone()


class Watch(lightning.Callback):
    """Records the weight of the module at each hook, and computes its average."""

    def __init__(self, decay):
        self.decay, self.average, self.seen, self.steps = decay, None, {}, 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step > self.steps:
            current = weight(module).double()
            n = self.steps
            decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
            self.average = current if self.average is None else decay * self.average + (1 - decay) * current
            self.steps = trainer.global_step
            self.seen["train"] = weight(module)

    def on_validation_batch_start(self, trainer, module, *args):
        self.seen["validation"] = weight(module)

    def on_validation_epoch_end(self, trainer, module):
        self.seen["validation end"] = weight(module)

    def on_test_batch_start(self, trainer, module, *args):
        self.seen["test"] = weight(module)

    def on_predict_batch_start(self, trainer, module, *args):
        self.seen["predict"] = weight(module)


def close(a, b):
    return torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-7)


def assert_holds_both(path, watch):
    checkpoint = torch.load(path, weights_only=True)
    name = "denoiser.network.conv.weight"
    assert checkpoint["weights"] == {"state_dict": "average", "current_model_state": "raw", "decay": watch.decay}
    assert close(checkpoint["state_dict"][name], watch.average)
    assert torch.equal(checkpoint["current_model_state"][name], watch.seen["train"])


def fitted(decay=0.9, after=(), **kwargs):
    watch, ema = Watch(decay), EMA(decay)
    run = trainer(callbacks=[ema, watch, *after], **kwargs)
    module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=5.0))
    run.fit(module, digits())
    return run, module, watch, ema


def test_the_average_is_the_exponential_one_with_warm_up():
    _, module, watch, ema = fitted()
    assert close(weight(module), watch.average)
    assert not close(weight(module), watch.seen["train"])
    assert [ema.decay_at(n) for n in (0, 8, 10_000)] == [0.1, 0.5, 0.9]


@pytest.mark.parametrize("order", ["before", "after"])
def test_every_validation_hook_sees_the_average(order):
    watch, ema = Watch(0.9), EMA(0.9)
    run = trainer(callbacks=[ema, watch] if order == "after" else [watch, ema], max_epochs=1)
    run.fit(tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=5.0)), digits())
    assert close(watch.seen["validation"], watch.average)
    assert close(watch.seen["validation end"], watch.average)


@pytest.mark.parametrize("kind", [EMA, EMAWeightAveraging])
def test_the_module_states_whether_it_holds_the_average(kind):
    class Stated(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            stated.add(("train", module.averaged))

        def on_validation_batch_start(self, trainer, module, *args):
            stated.add(("validation", module.averaged))

    stated, module = set(), tiny_module()
    run = trainer(callbacks=[kind(decay=0.9), Stated()], limit_val_batches=1)
    run.fit(module, digits())
    assert stated == {("train", False), ("validation", True)}
    assert module.averaged
    trainer().test(module, FewDigits(), verbose=False)  # a Trainer without the callback
    assert module.averaged


def test_one_update_per_step_under_accumulation():
    _, module, watch, ema = fitted(accumulate_grad_batches=2)
    assert watch.steps == 4
    assert int(ema._average_model.n_averaged) == 4
    assert close(weight(module), watch.average)


def test_a_checkpoint_holds_raw_and_averaged_weights(tmp_path):
    saver = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="epoch", every_n_epochs=1)
    _, _, watch, _ = fitted(after=[saver], max_epochs=1, enable_checkpointing=True)
    assert_holds_both(tmp_path / "epoch.ckpt", watch)


class SaveDuringValidation(lightning.Callback):
    def on_validation_epoch_end(self, trainer, module):
        trainer.save_checkpoint("inside.ckpt")


class FailInValidation(lightning.Callback):
    def on_validation_batch_start(self, trainer, module, *args):
        raise RuntimeError("on purpose")

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint("exception.ckpt")


@pytest.mark.parametrize("callback", [SaveDuringValidation(), FailInValidation()], ids=lambda c: type(c).__name__)
def test_a_checkpoint_from_within_validation_is_not_swapped(callback):
    watch = Watch(0.9)
    run = trainer(callbacks=[EMA(0.9), watch, callback], max_epochs=1)
    module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=5.0))
    if isinstance(callback, FailInValidation):
        with pytest.raises(RuntimeError, match="on purpose"):
            run.fit(module, digits())
    else:
        run.fit(module, digits())
    path = "inside.ckpt" if isinstance(callback, SaveDuringValidation) else "exception.ckpt"
    assert_holds_both(path, watch)


def test_saving_after_the_fit_keeps_both():
    run, _, watch, _ = fitted()
    run.save_checkpoint("after.ckpt")
    assert_holds_both("after.ckpt", watch)


def test_everything_after_a_fit_uses_the_average():
    run, module, watch, _ = fitted()
    run.save_checkpoint("after.ckpt")
    foreign = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    loader = torch.utils.data.DataLoader([torch.tensor([0, 0, 2])], batch_size=None)
    for path in (None, "after.ckpt"):  # with a path, a trainer that has fitted must not use the raw weights
        run.test(module, FewDigits(), ckpt_path=path, verbose=False, weights_only=True)
        run.validate(module, FewDigits(), ckpt_path=path, verbose=False, weights_only=True)
        run.predict(module, loader, ckpt_path=path, weights_only=True)
        for stage in ("test", "validation", "predict"):
            assert close(watch.seen[stage], watch.average), stage
    other = trainer(callbacks=[EMA(0.5)])
    other.test(foreign, FewDigits(), ckpt_path="after.ckpt", verbose=False, weights_only=True)
    assert close(weight(foreign), watch.average)


def test_load_from_checkpoint_gives_the_average():
    run, _, watch, _ = fitted()
    run.save_checkpoint("after.ckpt")
    loaded = DDPM.load_from_checkpoint("after.ckpt", weights_only=True, network=TinyNetwork(num_steps=20))
    assert close(weight(loaded), watch.average)


def test_the_sample_grid_draws_from_the_average(monkeypatch):
    drawn = {}
    original = DDPM.sample

    def sample(self, *args, **kwargs):
        drawn["weight"] = weight(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DDPM, "sample", sample)
    _, _, watch, _ = fitted(after=[SampleGrid(num_images=2)], max_epochs=1)
    assert close(drawn["weight"], watch.average)


def test_integers_and_statistics_are_not_averaged():
    module = tiny_module()
    module.register_buffer("count", torch.tensor(0))

    class Count(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            module.count += 1

    run = trainer(callbacks=[Count(), EMA(0.9)])
    run.fit(module, digits())
    assert int(module.count) == 8


def test_a_second_fit_starts_from_the_weights_of_the_module():
    """These are the average; ``ckpt_path`` continues from the raw weights."""
    run, module, watch, _ = fitted(max_epochs=1)
    raw, average = watch.seen["train"], weight(module)

    class First(lightning.Callback):
        def on_train_start(self, trainer, module):
            self.weight = weight(module)

    first = First()
    run.callbacks.append(first)
    run.fit_loop.max_epochs = 2
    run.fit(module, digits())
    assert torch.equal(first.weight, average)
    assert not torch.equal(average, raw)
    assert not torch.equal(weight(module), average)


def fit_with(average, seed, module=None):
    module = module or tiny_module()
    if seed is not None:
        torch.manual_seed(seed)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    trainer(callbacks=[average], max_epochs=1, limit_val_batches=0).fit(module, digits())
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_one_callback_for_two_modules_equals_two_callbacks():
    shared = EMA(0.9)
    fit_with(shared, seed=1)
    expected = fit_with(EMA(0.9), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(fit_with(shared, seed=2), expected, strict=True))


def test_a_second_fit_with_another_trainer_is_averaged_too():
    average, module = EMA(0.9), tiny_module()
    first = fit_with(average, seed=1, module=module)
    second = fit_with(average, seed=None, module=module)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert average._latest_update_step == 4  # the steps of the second Trainer


def test_a_subclass_decides_when_to_average():
    class Late(EMA):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx is not None and step_idx >= 5

    class Weights(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            raw.append(weight(module).double())

    raw, late = [], Late(0.9)
    module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=5.0))
    trainer(callbacks=[Weights(), late]).fit(module, digits())
    assert int(late._average_model.n_averaged) == 3  # of 8 steps
    expected = raw[5]
    for steps in (6, 7):
        decay = (1 + steps) / (10 + steps)
        expected = decay * expected + (1 - decay) * raw[steps]
    assert close(weight(module), expected)


class Draw(lightning.Callback):
    """Records the weights that a callback draws with, and those of the module outside of the block."""

    def __init__(self):
        self.drawn, self.outside = [], []

    def draw(self, trainer, module):
        before = weight(module)
        with averaged_weights(trainer, module, self):
            self.drawn.append(weight(module))
        assert torch.equal(weight(module), before)
        self.outside.append(before)

    on_validation_epoch_end = on_train_end = on_test_epoch_end = draw


class WatchConstant(Watch):
    """The average of Lightning, which has no warm-up."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        current = weight(module).double()
        self.average = current if self.average is None else 0.9 * self.average + 0.1 * current


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("kind", [EMA, EMAWeightAveraging])
def test_callbacks_draw_with_the_average_in_any_order(kind, place):
    watch, draw = Watch(0.9) if kind is EMA else WatchConstant(0.9), Draw()
    callbacks = [kind(decay=0.9), watch]
    callbacks.insert(place, draw)
    module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=5.0))
    run = trainer(callbacks=callbacks, max_epochs=1, limit_val_batches=1)
    run.fit(module, digits())
    assert len(draw.drawn) == 2  # in validation and at the end of training
    assert all(close(drawn, watch.average) for drawn in draw.drawn)
    run.test(module, FewDigits(), verbose=False)
    assert torch.equal(draw.drawn[-1], draw.outside[-1])


def test_callbacks_draw_with_the_weights_without_an_average():
    draw, module = Draw(), tiny_module()
    trainer(callbacks=[draw], max_epochs=1, limit_val_batches=1).fit(module, digits())
    assert all(torch.equal(a, b) for a, b in zip(draw.drawn, draw.outside, strict=True))


def test_unsharded_training_does_not_warn_of_sharding():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*configure_model.*")
        trainer(max_epochs=1, callbacks=[EMA()]).fit(tiny_module(), digits())


def test_sharded_strategies_and_bad_decays_are_refused():
    run = trainer()
    run.strategy.__class__ = type("Sharded", (FSDPStrategy,), {"__init__": lambda self: None})
    with pytest.raises(ValueError, match="EMA does not work with Sharded, which shards the weights"):
        EMA().setup(run, tiny_module(), "fit")
    for decay in (-0.5, 1, 1.5):
        with pytest.raises(ValueError, match=rf"decay = {decay} of EMA must be in \[0, 1\)"):
            EMA(decay)
    assert EMA().decay == 0.9999


def test_a_decay_of_zero_keeps_the_raw_weights():
    module, watch = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=5.0)), Watch(0.0)
    trainer(callbacks=[EMA(0), watch], max_epochs=1).fit(module, digits())
    assert torch.equal(weight(module), watch.seen["train"])


def test_the_bounds_of_raw_and_averaged_weights():
    module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    run = fit(EMA(0.9, raw_bound=True), module=module, data=FewDigits(batch_size=256), enable_checkpointing=True)
    logged = {key: float(run.callback_metrics[key]) for key in ("val/bpd", "val/bpd_raw")}
    checkpoint = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    for key, weights in (("val/bpd", "state_dict"), ("val/bpd_raw", "current_model_state")):
        module.load_state_dict(checkpoint[weights])
        (found,) = trainer(limit_val_batches=1).validate(module, FewDigits(), verbose=False)
        assert found["val/bpd"] == pytest.approx(logged[key], abs=1e-5)
    assert logged["val/bpd"] != logged["val/bpd_raw"]
    assert "val/bpd_raw" not in fit(EMA(0.9)).callback_metrics


def test_an_exception_in_a_validation_leaves_the_raw_weights():
    """The module says which weights it holds, also to another Trainer."""

    class Fail(lightning.Callback):
        def on_validation_batch_end(self, *args, **kwargs):
            raise RuntimeError("mine")

    module, ema = tiny_module(), EMA(0.9)
    with pytest.raises(RuntimeError, match="mine"):
        trainer(callbacks=[Fail(), ema], max_epochs=1).fit(module, digits())
    raw = [parameter.detach().clone() for parameter in module.parameters()]
    assert not ema.swapped
    trainer(limit_test_batches=1).test(module, digits(), verbose=False)
    assert not module.averaged
    assert all(torch.equal(a, b) for a, b in zip(raw, module.parameters(), strict=True))
