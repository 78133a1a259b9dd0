import pytest
from helpers import DIGITS_CONFIG, SMALL_COMPARISON, compare_digits

from lit_ddpm.__main__ import main


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["kl", "kll"], "objective 'kll' is neither one of kl, x0_mse, simple, min_snr nor an existing file"),
        (["kl", "kl"], "two arms have the name 'kl'"),
        (["kl", "overlays/kl.yaml"], "two arms have the name 'kl'"),
        (["kl", "overlays/none.yaml"], "objective 'overlays/none.yaml' is neither one of"),
        ([], "objectives is empty"),
    ],
)
def test_unfit_arms_are_named(objectives, message, tmp_path, capsys):
    for act in (
        lambda: compare_digits(tmp_path / "runs", objectives=objectives),
        lambda: main(["compare", "--config", DIGITS_CONFIG, "--objectives", ",".join(objectives), *SMALL_COMPARISON]),
    ):
        with pytest.raises((ValueError, SystemExit)) as raised:
            act()
        text = str(raised.value) if raised.type is ValueError else capsys.readouterr().err
        assert message in text
    assert not (tmp_path / "runs").exists()
