import pytest
from helpers import DIGITS_CONFIG, SMALL_COMPARISON, compare_digits

from lit_ddpm import X0MSE, X0Parametrization
from lit_ddpm.__main__ import main
from lit_ddpm.compare.variants import check_variants, resolve_variants


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (
            ["kl", "kll"],
            "objective = kll is none of kl, x0_mse, simple, min_snr, p2, edm, sigmoid, flow_matching, none of the "
            "overlays hybrid, importance",
        ),
        (["kl", "kl"], "two variants have the name 'kl'"),
        (["kl", "overlays/none.yaml"], "objective = overlays/none.yaml is none of"),
        (["overlays/kl.yaml"], "objective = overlays/kl.yaml is none of"),
        ([], "variants to train need both --config and --objectives"),
    ],
)
def test_unfit_variants_are_named(objectives, message, tmp_path, capsys):
    for act in (
        lambda: compare_digits(tmp_path / "runs", objectives=objectives),
        lambda: main(["compare", "--config", DIGITS_CONFIG, "--objectives", ",".join(objectives), *SMALL_COMPARISON]),
    ):
        with pytest.raises((ValueError, SystemExit)) as raised:
            act()
        text = str(raised.value) if isinstance(raised.value, ValueError) else capsys.readouterr().err
        assert message in text
    assert not (tmp_path / "runs").exists()


def test_an_overlay_may_have_the_name_of_an_objective(tmp_path):
    (tmp_path / "kl.yaml").write_text(
        "model: {class_path: lit_ddpm.DDPM, init_args: {parametrization: lit_ddpm.X0Parametrization}}\n"
    )
    (variant,) = resolve_variants([DIGITS_CONFIG], [tmp_path / "kl.yaml"], SMALL_COMPARISON)
    assert variant.name == "kl"
    assert isinstance(variant.module.denoiser.parametrization, X0Parametrization)
    assert isinstance(variant.module.objective, X0MSE)  # that of the configuration
    with pytest.raises(ValueError, match="two variants have the name 'kl'"):
        check_variants([*resolve_variants([DIGITS_CONFIG], ["kl"], SMALL_COMPARISON), variant])
