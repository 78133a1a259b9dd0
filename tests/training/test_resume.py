"""An interrupted run resumes to the same weights."""

import signal
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from helpers import ROOT, FewDigits, TinyNetwork, digits, same_weights, tiny_module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from benchmarks.kill import arguments
from lit_ddpm import ImportanceTimesteps, OneCycle, StratifiedTimesteps
from lit_ddpm.__main__ import main
from lit_ddpm.callbacks import EMA
from lit_ddpm.data import ImageTensors


class WithDropout(TinyNetwork):
    """Its training depends on the random numbers of dropout."""

    def forward(self, x_t, t):
        return torch.nn.functional.dropout(super().forward(x_t, t), 0.3, self.training)


def make(lr_scheduler=lambda optimizer: OneCycle(optimizer, max_lr=1e-3)):
    torch.manual_seed(0)
    return tiny_module(
        network=WithDropout(num_steps=20),
        timesteps=ImportanceTimesteps(history=1),
        lr_scheduler=lr_scheduler,
    )


def flipped():
    data = digits(batch_size=128)
    data.flip = True
    return data


class FourBatches(FewDigits):
    """Four flipped batches of 32 images in an epoch."""

    def __init__(self):
        super().__init__(batch_size=32)
        self.flip = True

    def splits(self):
        splits = super().splits()
        return splits | {"train": ImageTensors(splits["train"].images[:130], splits["train"].labels[:130])}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_in_the_middle_of_an_epoch_is_the_same_run(tmp_path, accumulate):
    """With averaged weights, dropout, flips, a learning-rate schedule, importance and accumulation."""
    settings = {"max_epochs": 3, "accumulate_grad_batches": accumulate, "enable_checkpointing": True}
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, full = make(), trainer(callbacks=[EMA(0.9), every], **settings)
    full.fit(whole, flipped())
    steps = sorted(int(path.stem.removeprefix("step=")) for path in tmp_path.glob("*.ckpt"))
    per_epoch = -(-9 // accumulate)
    assert steps == list(range(1, 3 * per_epoch + 1))
    for step in (1, per_epoch + 2, 2 * per_epoch):
        resumed = make()
        again = trainer(callbacks=[EMA(0.9)], **{**settings, "enable_checkpointing": False})
        path = tmp_path / f"step={step}.ckpt"
        again.fit(resumed, flipped(), ckpt_path=path, weights_only=True)
        assert again.global_step == full.global_step
        assert same_weights(whole, resumed), step
        assert same_weights(full.callbacks[0]._average_model, again.callbacks[0]._average_model), step
        if step % per_epoch:  # from an epoch's last step Lightning resumes without that epoch's validation
            assert full.callback_metrics["val/bpd"] == again.callback_metrics["val/bpd"]
        assert torch.equal(whole.timesteps._losses, resumed.timesteps._losses)


def test_max_steps_resumes_from_the_end_of_an_epoch(tmp_path):
    """Lightning itself would shuffle for another epoch than the one it trains."""
    every = ModelCheckpoint(tmp_path, filename="{step}", save_on_train_epoch_end=True, save_top_k=-1)
    whole, resumed = make(), make()
    trainer(max_steps=24, max_epochs=-1, callbacks=[EMA(0.9), every], enable_checkpointing=True).fit(whole, flipped())
    again = trainer(max_steps=24, max_epochs=-1, callbacks=[EMA(0.9)])
    again.fit(resumed, flipped(), ckpt_path=tmp_path / "step=9.ckpt", weights_only=True)
    assert again.global_step == 24
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("saved_at", [2, 3])
def test_limited_epochs_resume_at_their_own_end(tmp_path, saved_at):
    """Three of the four batches of an epoch: a checkpoint within an epoch, and one at its end."""
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    limits = {"limit_train_batches": 3, "limit_val_batches": 0, "max_epochs": 3}
    whole, resumed = tiny_module(), tiny_module()
    trainer(**limits, callbacks=[every], enable_checkpointing=True).fit(whole, digits())
    trainer(**limits).fit(resumed, digits(), ckpt_path=tmp_path / f"step={saved_at}.ckpt", weights_only=True)
    assert same_weights(whole, resumed)


def test_killed_fits_end_with_the_same_weights():
    """Two of the fifty kills of `benchmarks.kill`, with random settings, on one process and on two."""
    command = [sys.executable, "-m", "benchmarks", "kill", "--kills", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "2 of 2 killed fits ended bit-equal" in done.stdout, done.stdout + done.stderr


def test_a_terminated_fit_saves_a_checkpoint(capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    small = [arg for arg in arguments(Path("run"), ["--trainer.max_epochs=2"]) if "callbacks" not in arg]
    try:
        with pytest.raises(SystemExit) as stopped:
            main([*small, "--trainer.callbacks+=helpers.Terminate"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
    assert "terminated; resume with --ckpt_path" in capsys.readouterr().err
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


class Interrupt(lightning.Callback):
    """Stops after a backward pass, before the optimizer step."""

    def on_after_backward(self, trainer, module):
        if trainer.global_step == 13:
            raise SystemExit(143)


def test_an_interrupted_fit_resumes_with_the_same_batch(tmp_path):
    whole = make()
    trainer(max_epochs=3, callbacks=[EMA(0.9)]).fit(whole, flipped())
    last = ModelCheckpoint(tmp_path, filename="last", save_on_exception=True)
    run = trainer(max_epochs=3, callbacks=[EMA(0.9), last, Interrupt()], enable_checkpointing=True)
    with pytest.raises(SystemExit):
        run.fit(make(), flipped())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 13
    resumed = make()
    run = trainer(max_epochs=3, callbacks=[EMA(0.9)])
    run.fit(resumed, flipped(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert same_weights(whole, resumed)


def test_resuming_after_an_epoch_is_the_same_run(tmp_path):
    def make():
        torch.manual_seed(0)
        return tiny_module(
            network=WithDropout(num_steps=20),
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
    # The third validation samples by the second moments of the second; validating a checkpoint uses those saved in it.
    assert full.callback_metrics["val/bpd"] == second.callback_metrics["val/bpd"]
    (again,) = trainer().validate(make(), digits(), checkpoint, verbose=False, weights_only=True)
    assert again["val/bpd"] == pytest.approx(float(first.callback_metrics["val/bpd"]), abs=1e-6)
    state = whole.evaluation.state_dict()
    assert state["initial_moment"] is not None
    assert not torch.equal(state["initial_moment"], state["found_moment"])


def test_resuming_restores_the_importance_of_timesteps():
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


class Checkpoint(ModelCheckpoint):
    """Every step, each in a file of its own."""

    def __init__(self, directory):
        super().__init__(directory, filename="{step}", every_n_train_steps=1, save_top_k=-1)


SETTINGS = {  # what ends a fit, its epochs, its optimizer steps and its validations
    "max_steps": {"max_steps": 7, "max_epochs": -1},
    "max_time": {"max_epochs": 2, "max_time": "00:01:00:00"},
    "limit_train_batches": {"max_epochs": 2, "limit_train_batches": 3},
    "limit_train_share": {"max_epochs": 3, "limit_train_batches": 0.6},
    "overfit_batches": {"max_epochs": 3, "overfit_batches": 3},
    "val_check_interval": {"max_epochs": 2, "val_check_interval": 2},
    "val_check_share": {"max_epochs": 2, "val_check_interval": 0.5, "limit_train_batches": 3},
    "val_over_epochs": {"max_epochs": 3, "val_check_interval": 3, "check_val_every_n_epoch": None},
    "check_val_every_n_epoch": {"max_epochs": 4, "check_val_every_n_epoch": 2},
    "no_validation": {"max_epochs": 2, "limit_val_batches": 0},
    "accumulation": {"max_epochs": 3, "accumulate_grad_batches": 3},
    "accumulation_over_an_end": {"max_steps": 7, "max_epochs": -1, "accumulate_grad_batches": 3},
    "accumulation_and_limit": {"max_epochs": 4, "accumulate_grad_batches": 2, "limit_train_batches": 3},
    "sanity_check": {"max_epochs": 2, "num_sanity_val_steps": 2},
    "reload": {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1},
    "manual_sampler": {"max_epochs": 2, "use_distributed_sampler": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_step_of_every_setting_resumes(tmp_path, name):
    settings = {"limit_val_batches": 1, **SETTINGS[name]}
    whole, full = make(), trainer(callbacks=[EMA(0.9), Checkpoint(tmp_path)], enable_checkpointing=True, **settings)
    full.fit(whole, FourBatches())
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == full.global_step > 4
    for path in checkpoints:
        resumed, again = make(), trainer(callbacks=[EMA(0.9)], **settings)
        again.fit(resumed, FourBatches(), ckpt_path=path, weights_only=True)
        assert again.global_step == full.global_step, path.name
        assert same_weights(whole, resumed), path.name
        assert same_weights(full.callbacks[0]._average_model, again.callbacks[0]._average_model), path.name
        assert torch.equal(whole.timesteps._losses, resumed.timesteps._losses), path.name
