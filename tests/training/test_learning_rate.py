"""Learning-rate schedules have the length of the run."""

import re

import pytest
import torch
from helpers import CONFIGS, digits, same_weights, tiny_module, trainer
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from lit_ddpm import DDPM, LinearWarmup, OneCycle, num_training_steps


def one_cycle(optimizer):
    return OneCycle(optimizer, max_lr=1e-3, pct_start=0.3)


class Rates(Callback):
    """Records the learning rate of each optimizer step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def rates_of(module=None, data=None, ckpt_path=None, **settings) -> list[float]:
    rates = Rates()
    callbacks = [rates, *settings.pop("callbacks", [])]
    run = trainer(**{"limit_val_batches": 0, "callbacks": callbacks, **settings})
    run.fit(module or tiny_module(lr_scheduler=one_cycle), data or digits(), ckpt_path=ckpt_path, weights_only=True)
    return rates.rates


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 2},
        {"max_epochs": 5, "accumulate_grad_batches": 3},  # two steps an epoch, the second of one batch
        {"max_epochs": 2, "limit_train_batches": 3},
        {"max_epochs": 3, "limit_train_batches": 0.5},
        {"max_epochs": 6, "overfit_batches": 2},
        {"max_epochs": 9, "max_steps": 7},
        {"max_epochs": -1, "max_steps": 7},
        {"max_epochs": 2, "max_time": "00:01:00:00"},
        {"max_epochs": 2, "limit_val_batches": 1, "val_check_interval": 2},
    ],
)
def test_the_schedule_ends_with_the_run(settings):
    rates = rates_of(**settings)
    assert len(rates) > 4
    expected = torch.optim.SGD([torch.zeros(1)])
    schedule = OneCycleLR(expected, 1e-3, len(rates), cycle_momentum=False)
    for rate in rates:
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        expected.step()
        schedule.step()
    assert rates[-1] == min(rates) == pytest.approx(1e-3 / 25 / 1e4)


def schedule_of(kind, total_steps, max_lr=3e-3, **settings):
    """Returns the learning rates of two parameter groups at each step."""
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    schedule = kind(optimizer, max_lr, total_steps, **settings)
    rates = [schedule.get_last_lr()]
    for _ in range(total_steps - 1):
        optimizer.step()
        schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert schedule.get_last_lr() == rates[-1]
    return rates


@pytest.mark.parametrize("total_steps", [2, 3, 10, 97, 1000])
@pytest.mark.parametrize("pct_start", [0.0, 0.05, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("factors", [{}, {"div_factor": 7.0, "final_div_factor": 31.0}])
def test_the_rates_are_those_of_torch_to_the_last_digit(total_steps, pct_start, factors):
    found = schedule_of(OneCycle, total_steps, pct_start=pct_start, **factors)
    assert found == schedule_of(OneCycleLR, total_steps, pct_start=pct_start, cycle_momentum=False, **factors)


@pytest.mark.parametrize("total_steps", [2, 4, 10, 20])
def test_a_warm_up_of_one_step_begins_at_the_initial_rate(total_steps):
    """torch divides by zero for it, so the warm-up is a hundredth of a step longer."""
    pct_start = 1 / total_steps
    found = schedule_of(OneCycle, total_steps, pct_start=pct_start)
    assert found[0] == pytest.approx([3e-3 / 25] * 2)
    assert found == schedule_of(OneCycleLR, total_steps, pct_start=1.01 * pct_start, cycle_momentum=False)


def test_the_rate_stays_the_final_one_after_the_last_step():
    optimizer = torch.optim.SGD([torch.zeros(1)])
    schedule = OneCycle(optimizer, 1e-3, total_steps=4)
    rates = []
    for _ in range(7):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates[2:] == [rates[2]] * 5
    assert rates[2] == pytest.approx(1e-3 / 25 / 1e4)


@pytest.mark.parametrize(("name", "value"), [("total_steps", 0), ("pct_start", 1.5), ("pct_start", -0.1)])
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value} of OneCycle must be"):
        OneCycle(torch.optim.SGD([torch.zeros(1)]), 1e-3, **{"total_steps": 4, name: value})


def test_the_batch_size_changes_the_length():
    lengths = [len(rates_of(data=digits(batch_size=size), max_epochs=2)) for size in (64, 500)]
    assert lengths == [38, 4]


def test_the_number_of_devices_changes_the_length():
    class Save(Rates):
        def on_train_end(self, trainer, module):
            torch.save(self.rates, f"{trainer.global_rank}.pt")

    module = tiny_module(lr_scheduler=one_cycle)
    run = trainer(devices=2, strategy="ddp_fork", callbacks=[Save()], limit_val_batches=0, max_epochs=2)
    run.fit(module, digits(batch_size=100))
    rates = torch.load("1.pt")
    assert len(rates) == 12  # 12 batches of 100 images on two ranks, twice
    assert rates[-1] == min(rates) == pytest.approx(1e-3 / 25 / 1e4)


def test_a_scheduler_of_torch_takes_the_length():
    module = tiny_module(lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=num_training_steps() - 1))
    rates = rates_of(module, max_epochs=3)
    assert rates[0] == max(rates)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_length_is_unknown_elsewhere():
    with pytest.raises(ValueError, match="only while a Trainer builds the lr_scheduler"):
        num_training_steps()
    with pytest.raises(ValueError, match="max_epochs and max_steps of the Trainer are -1"):
        rates_of(max_epochs=-1, max_time="00:00:00:05")


@pytest.mark.parametrize("steps", range(1, 6))
def test_very_short_runs(steps):
    module = tiny_module(lr_scheduler=lambda optimizer: OneCycle(optimizer, max_lr=1e-3, pct_start=0.25))
    assert len(rates_of(module, max_steps=steps)) == steps


def test_warm_up():
    module = tiny_module(lr_scheduler=lambda optimizer: LinearWarmup(optimizer, fraction=0.5))
    rates = rates_of(module, max_epochs=2)
    assert rates == pytest.approx([2e-4 * step for step in (0.25, 0.4375, 0.625, 0.8125, 1, 1, 1, 1)])
    with pytest.raises(ValueError, match=r"fraction = 0 of LinearWarmup must be in \(0, 1\]"):
        LinearWarmup(torch.optim.SGD([torch.zeros(1)]), fraction=0)


def test_a_resumed_run_with_more_epochs_follows_the_longer_schedule(tmp_path):
    whole = rates_of(max_epochs=4)
    last = ModelCheckpoint(tmp_path, filename="last")
    short = rates_of(max_epochs=2, callbacks=[last], enable_checkpointing=True)
    assert short[:5] != whole[:5]
    expected = "16 steps in this run, and had 8 when .*: from step 8 on it follows the new length, with learning rate"
    with pytest.warns(UserWarning, match=expected):
        assert rates_of(max_epochs=4, ckpt_path=tmp_path / "last.ckpt") == whole[8:]


class EstimatesItself(DDPM):
    """Takes the length from the Trainer, as Lightning's documentation suggests."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = OneCycleLR(optimizer, 1e-3, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize("kind", [DDPM, EstimatesItself])
def test_resuming_within_an_epoch(tmp_path, kind):
    """The estimate sets up the loader before Lightning restores the position in the epoch."""
    settings = {"max_epochs": 3, "limit_val_batches": 0}
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, resumed = (tiny_module(kind, lr_scheduler=one_cycle) for _ in range(2))
    trainer(**settings, callbacks=[every], enable_checkpointing=True).fit(whole, digits())
    trainer(**settings).fit(resumed, digits(), ckpt_path=tmp_path / "step=6.ckpt", weights_only=True)
    assert same_weights(whole, resumed)


def test_the_shipped_configurations_have_no_step_counts():
    for path in CONFIGS.rglob("*.yaml"):
        assert not re.search("total_steps|total_iters|T_max|milestones", path.read_text()), path
