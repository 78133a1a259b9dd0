"""A run that was cut off anywhere goes on to the same weights."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from helpers import digits, tiny_module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_module import same_weights

from benchmarks.kill import arguments
from lit_ddpm import ImportanceTimesteps, UNet
from lit_ddpm.__main__ import main
from lit_ddpm.callbacks import EMA
from lit_ddpm.data.base import ImageTensors
from lit_ddpm.data.loader import EpochSampler, Progress, ResumableLoader


def make():
    torch.manual_seed(0)
    return tiny_module(
        network=UNet(width=16, num_blocks=1, attention_levels=[], dropout=0.3),
        timesteps=ImportanceTimesteps(history=1),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-3, total_steps=40),
    )


def flipped():
    data = digits(batch_size=128)
    data.flip = True
    return data


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
        if step % per_epoch:  # from an epoch's last step Lightning goes on without that epoch's validation
            assert full.callback_metrics["val/bpd"] == again.callback_metrics["val/bpd"]
        assert torch.equal(whole.timesteps._losses, resumed.timesteps._losses)


def test_max_steps_goes_on_from_the_end_of_an_epoch_too(tmp_path):
    """Where Lightning would shuffle for another epoch than the one it trains."""
    every = ModelCheckpoint(tmp_path, filename="{step}", save_on_train_epoch_end=True, save_top_k=-1)
    whole, resumed = make(), make()
    trainer(max_steps=24, max_epochs=-1, callbacks=[EMA(0.9), every], enable_checkpointing=True).fit(whole, flipped())
    again = trainer(max_steps=24, max_epochs=-1, callbacks=[EMA(0.9)])
    again.fit(resumed, flipped(), ckpt_path=tmp_path / "step=9.ckpt", weights_only=True)
    assert again.global_step == 24
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_where_training_was(num_workers):
    images = ImageTensors(torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1), torch.zeros(20, dtype=torch.int64))

    class Place(Progress):
        epoch = batches = 0

    progress = Place(None)

    def loader():
        sampler = EpochSampler(images, num_replicas=1, rank=0, shuffle=True, seed=3)
        keep = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
        return ResumableLoader(images, 3, sampler, progress, collate_fn=levels, **keep)

    whole = loader()
    first = list(whole)
    assert len(first) == len(whole) == 6
    assert list(whole) == first  # a finished epoch leaves nothing behind
    broken_off = iter(whole)
    assert [next(broken_off) for _ in range(3)] == first[:3]
    progress.batches = 2  # the third was cut off
    resumed, state = loader(), whole.state_dict()
    resumed.load_state_dict(state)
    assert list(resumed) == first[2:]
    assert list(resumed) == first
    assert list(whole) == first  # nor does one that was broken off
    resumed.load_state_dict({"batches": 6})
    assert list(resumed) == first
    progress.epoch = 1
    assert list(resumed) != first


def levels(batch):
    return batch[0].flatten().tolist()


def test_fits_that_were_killed_end_with_the_same_weights():
    """Three of the fifty of `benchmarks.kill`, on one process and on two."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.kill", "--kills", "3"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert "3 of 3 killed fits ended bit-equal" in done.stdout, done.stdout + done.stderr


class Terminate(lightning.Callback):
    """Sends the process SIGTERM, as SLURM does."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_fit_that_is_terminated_saves_and_says_so(capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    small = [argument for argument in arguments(Path("run"), 1) if "callbacks" not in argument]
    try:
        with pytest.raises(SystemExit) as stopped:
            main([*small, "--trainer.callbacks+=test_resume.Terminate"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
    assert "terminated; the run goes on with --ckpt_path" in capsys.readouterr().err
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


class Interrupt(lightning.Callback):
    """Stops in the middle of a batch, before its step."""

    def on_after_backward(self, trainer, module):
        if trainer.global_step == 13:
            raise SystemExit(143)


def test_an_interrupted_fit_saves_and_goes_on_with_the_batch_that_was_cut_off(tmp_path):
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
