"""`lit-ddpm compare` with wrong settings."""

import pytest
from helpers import DIGITS_CONFIG, compare_digits, error_of


def test_unfit_settings_are_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="seeds = 0 must be at least 1"):
        compare_digits(tmp_path / "runs", num_seeds=0)
    with pytest.raises(ValueError, match="jobs = 0 must be at least 1"):
        compare_digits(tmp_path / "runs", jobs=0)
    command = ["compare", "--config", DIGITS_CONFIG, "--objectives", "kl", "--output_dir", str(tmp_path / "runs")]
    for extra, message in (
        (["--trainer.epochs=3"], "trainer.epochs"),
        (["--seeds", "many"], "--seeds"),
        (["--config", "none.yaml"], "none.yaml"),
    ):
        assert message in error_of(capsys, [*command, *extra])
    assert not (tmp_path / "runs").exists()
