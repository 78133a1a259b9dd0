import itertools

import lightning
import pytest
import torch
from helpers import Recorder, digits, tiny_module, trainer
from lightning.pytorch.plugins import MixedPrecision

from lit_ddpm import DDPM
from lit_ddpm.callbacks import EMA, SkipNonFinite


class Explode(lightning.Callback):
    """Makes the gradients of some steps infinite, with finite losses."""

    def __init__(self, steps):
        self.steps = steps

    def on_after_backward(self, trainer, module):
        if trainer.global_step in self.steps:
            module.denoiser.network.conv.weight.grad.fill_(float("inf"))


class NaNAt(DDPM):
    """A module with NaN images at one step."""

    def unpack_batch(self, batch):
        x_0, cond = super().unpack_batch(batch)
        return (x_0 * float("nan") if self.trainer.training and self.trainer.global_step == 5 else x_0), cond


def test_nonfinite_steps_are_skipped_and_counted():
    module, recorder = tiny_module(NaNAt), Recorder()
    before = []

    class Weights(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            before.append(module.denoiser.network.conv.weight.detach().clone())

    guard = SkipNonFinite()
    run = trainer(max_epochs=3, callbacks=[Explode({2}), Weights(), recorder, EMA(0.9), guard])
    with pytest.warns(UserWarning, match=r"not finite at step 5, at learning rate 0.0002, for the losses at t = \[\d"):
        run.fit(module, digits())
    assert [bool(torch.equal(a, b)) for a, b in itertools.pairwise(before)] == [i in (1, 4) for i in range(11)]
    assert guard.skipped_steps == 2
    assert recorder.logged["train/skipped_steps"] == 2
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


def test_too_many_nonfinite_steps_stop_training(tmp_path):
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1)
    run = trainer(
        callbacks=[Explode({3, 4, 6}), SkipNonFinite(2), checkpoints], limit_val_batches=0, enable_checkpointing=True
    )
    with pytest.raises(
        FloatingPointError, match=r"not finite at step 6, at learning rate 0.0002: .*max_skipped_steps = 2 "
    ):
        run.fit(tiny_module(), digits())
    (path,) = tmp_path.glob("*.ckpt")
    kept = torch.load(path, weights_only=True)
    assert kept["global_step"] == 6
    assert all(bool(torch.isfinite(weight).all()) for weight in kept["state_dict"].values())


@pytest.mark.parametrize("fused", [False, True])
def test_float16_overflow_first_lowers_the_loss_scale(fused):
    """The loss scale starts at 2 ** 16, as on a GPU, and each overflow halves it."""

    def optimizer(params):
        return torch.optim.AdamW(params, lr=1e-3, fused=fused)

    module = tiny_module(optimizer=optimizer)
    precision = MixedPrecision("16-mixed", device="cpu")
    guard = SkipNonFinite()
    run = trainer(max_epochs=1, callbacks=[Explode({1, 2}), guard], plugins=[precision], gradient_clip_val=1.0)
    run.fit(module, digits())
    assert precision.scaler.get_scale() == 2**14
    assert guard.skipped_steps == 0
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())

    explode = [Explode(range(100)), SkipNonFinite(2)]
    run = trainer(max_epochs=5, callbacks=explode, plugins=[MixedPrecision("16-mixed", device="cpu")])
    with pytest.raises(FloatingPointError, match=r"not finite at step 18, .*max_skipped_steps = 2 "):
        run.fit(tiny_module(optimizer=optimizer), digits())


def test_max_skipped_steps_is_not_negative():
    with pytest.raises(ValueError, match="max_skipped_steps = -1"):
        SkipNonFinite(-1)


@pytest.mark.parametrize(("clip_val", "calls"), [(1e-6, 4), (1e6, 0)])
def test_gradients_below_the_limit_are_not_multiplied(monkeypatch, clip_val, calls):
    seen, original = [], torch.nn.utils.clip_grads_with_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", lambda *args: seen.append(original(*args)))
    trainer(max_epochs=1, gradient_clip_val=clip_val).fit(tiny_module(), digits())
    assert len(seen) == calls


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_as_lightning_clips_them(precision):
    """Also with a fused optimizer in mixed precision, which Lightning refuses."""

    class Usual(DDPM):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def fit(module, **kwargs):
        # With precision="16-mixed" Lightning trains in bfloat16 on a CPU.
        given = {"plugins": [MixedPrecision(precision, "cpu")]} if precision == "16-mixed" else {"precision": precision}
        trainer(max_epochs=1, **given, **kwargs).fit(module, digits())

    weights = []
    for kind, fused in ((DDPM, True), (DDPM, False), (Usual, False)):
        module = tiny_module(kind, optimizer=lambda params, fused=fused: torch.optim.SGD(params, lr=1, fused=fused))
        fit(module, gradient_clip_val=1e-3)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    unclipped = tiny_module(optimizer=lambda params: torch.optim.SGD(params, lr=1))
    fit(unclipped)
    assert not torch.equal(torch.cat([p.detach().flatten() for p in unclipped.parameters()]), weights[1])
