"""`lit-ddpm compare` with wrong settings, and with an arm that fails."""

import subprocess

import pytest
from helpers import DIGITS_CONFIG, SMALL_COMPARISON, compare_digits, error_of, read_csv

from lit_ddpm.__main__ import main
from lit_ddpm.compare.runs import Run


def arms_of(directory):
    return [row["trained_with"] for row in read_csv(directory / "table.csv")]


def test_a_crashed_arm_loses_nothing(tmp_path, capsys, monkeypatch):
    """The other arm is reported, and resuming repeats the crashed one only."""
    (tmp_path / "crashing.yaml").write_text("model: {class_path: lit_ddpm.DDPM, init_args: {clip: true}}")
    executed = []

    def process(self, command, *args):
        executed.append((self.arm.name, command))
        self.files.log.write_text("out of memory\n")
        if self.arm.name == "crashing" and len(executed) <= 4:
            raise subprocess.CalledProcessError(1, command)
        main([command, *args])

    monkeypatch.setattr(Run, "_run_process", process)
    objectives = f"kl,{tmp_path / 'crashing.yaml'}"
    command = ["compare", "--config", DIGITS_CONFIG, "--objectives", objectives, "--output_dir", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *SMALL_COMPARISON])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "crashing, seed 0 failed: out of memory" in captured.out
    assert "1 runs failed: crashing, seed 0" in captured.err
    assert arms_of(tmp_path / "runs") == ["kl"]
    main([*command, *SMALL_COMPARISON, "--resume"])
    parts = ["fit", "predict", "test"]
    assert executed == [*(("kl", part) for part in parts), ("crashing", "fit"), *(("crashing", part) for part in parts)]
    assert arms_of(tmp_path / "runs") == ["kl", "crashing"]


def test_unfit_settings_are_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="seeds = 0 must be at least 1"):
        compare_digits(tmp_path / "runs", num_seeds=0)
    command = ["compare", "--config", DIGITS_CONFIG, "--objectives", "kl", "--output_dir", str(tmp_path / "runs")]
    for extra, message in (
        (["--trainer.epochs=3"], "trainer.epochs"),
        (["--seeds", "many"], "--seeds"),
        (["--config", "none.yaml"], "none.yaml"),
    ):
        assert message in error_of(capsys, [*command, *extra])
    assert not (tmp_path / "runs").exists()
