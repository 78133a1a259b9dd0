"""Configurations that extend others, and the checkpoints that the command adds."""

from pathlib import Path

import pytest
from helpers import CONFIGS, DIGITS_CONFIG, error_of
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.cli.arguments import with_bare_flags, with_config_files


def checkpoints(*args):
    callbacks = DDPMCLI(["--config", DIGITS_CONFIG, *args], run=False).trainer.callbacks
    return {c.filename: c for c in callbacks if isinstance(c, ModelCheckpoint)}


def test_base_configurations_come_first():
    expected = ["--config", DIGITS_CONFIG]
    bases = [f"--config={CONFIGS / 'base' / name}" for name in ("common.yaml", "likelihood.yaml")]
    expanded = with_config_files(["fit", *expected])
    assert [Path(arg.removeprefix("--config=")).resolve() for arg in expanded[1:3]] == [
        Path(arg.removeprefix("--config=")).resolve() for arg in bases
    ]
    assert expanded[3:] == [f"--config={DIGITS_CONFIG}"]


def test_a_flag_without_a_value_is_true():
    given = ["fit", "--number_run", "--exact", "false", "--exact=false", "--seed_everything", "--exact"]
    expected = ["fit", "--number_run=true", "--exact", "false", "--exact=false", "--seed_everything", "--exact=true"]
    assert with_bare_flags(given) == expected
    assert with_bare_flags([]) == []


def test_a_child_overrides_and_appends():
    cli = DDPMCLI(["--config", DIGITS_CONFIG], run=False)
    assert cli.model.denoiser.schedule.log_snr_start == 8.0  # of the child
    assert cli.model.denoiser.schedule.log_snr_end == -6.0  # of its base
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert {"EMA", "SampleGrid", "ELBOProfile", "Performance", "SampleMetrics"} <= set(names)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.yaml": "extends: none.yaml"},
            "extends of a.yaml = none.yaml is neither a file nor a shipped configuration",
        ),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "extends: a.yaml"}, "the files extend one another in a cycle"),
    ],
)
def test_a_wrong_extends_is_one_sentence(files, message, capsys):
    for name, text in files.items():
        Path(name).write_text(text)
    assert message in error_of(capsys, ["fit", "--config", "a.yaml"])


def test_the_command_adds_both_checkpoints():
    added = checkpoints()
    assert set(added) == {"last", "best"}
    assert added["last"].monitor is None
    assert (added["best"].monitor, added["best"].mode) == ("val/bpd", "min")
    assert added["best"]._every_n_epochs == 20  # as often as validation


def test_checkpoints_of_the_user_replace_them():
    own = "lightning.pytorch.callbacks.ModelCheckpoint"
    last = checkpoints(f"--trainer.callbacks+={own}", "--trainer.callbacks.filename=last")
    assert set(last) == {"last", "best"}
    best = checkpoints(
        f"--trainer.callbacks+={own}",
        "--trainer.callbacks.filename=fid",
        "--trainer.callbacks.monitor=sample/fid_digits",
    )
    assert set(best) == {"last", "fid"}
    assert checkpoints("--trainer.enable_checkpointing=false", "--trainer.callbacks=[]") == {}
    assert set(checkpoints("--trainer.limit_val_batches=0")) == {"last"}
