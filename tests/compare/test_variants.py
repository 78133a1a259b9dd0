import pytest
import torch
import yaml
from helpers import DIGITS_CONFIG, SMALL_COMPARISON, compare_digits

from lit_ddpm import (
    X0MSE,
    KLWeighting,
    MinSNRWeighting,
    PosteriorKL,
    PredictionMSE,
    SigmoidWeighting,
    X0Parametrization,
)
from lit_ddpm.__main__ import main
from lit_ddpm._internal.config import as_config
from lit_ddpm.compare import collect, prepare, run
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
        (
            ["LinearSchedule"],
            "not a file, and not a Weighting or Objective: a class of lit_ddpm such as KLWeighting, or an import path "
            "such as mine.MyWeighting.",
        ),
        (["kl_weight"], "objective = kl_weight is none of"),
        (["LogSNRWeighting"], "objective = LogSNRWeighting is none of"),  # abstract
        (["lit_ddpm.MinSNR"], "such as mine.MyWeighting (module 'lit_ddpm' has no attribute 'MinSNR')."),
        (["nowhere.MyWeighting"], "such as mine.MyWeighting (No module named 'nowhere')."),
        (["P2Weighting", "lit_ddpm.P2Weighting"], "two variants have the name 'P2Weighting': rename a class"),
        (["lit_ddpm.KLWeighting", "klweighting.yaml"], "two variants have the name 'KLWeighting'"),  # one folder
        (["..yaml"], "'.' is not usable as the name of a variant's folder"),
        ([], "variants to train need both --config and --objectives"),
    ],
)
def test_unfit_variants_are_named(objectives, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("klweighting", "."):
        (tmp_path / f"{name}.yaml").write_text("seed_everything: 0\n")
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


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("MinSNRWeighting", X0MSE(MinSNRWeighting())),
        ("KLWeighting", X0MSE(KLWeighting())),
        ("lit_ddpm.SigmoidWeighting", X0MSE(SigmoidWeighting())),
        ("X0MSE", X0MSE()),
        ("PosteriorKL", PosteriorKL()),
        ("PredictionMSE", PredictionMSE()),
    ],
)
def test_a_class_is_a_variant_with_its_defaults(name, objective, tmp_path):
    """Also where the configuration has the same class with other arguments."""
    gamma = {"weighting": {"class_path": "lit_ddpm.MinSNRWeighting", "init_args": {"gamma": 3.0}}}
    other = {"class_path": "lit_ddpm.X0MSE", "init_args": gamma}
    config = {"model": {"class_path": "lit_ddpm.DDPM", "init_args": {"objective": other}}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    (variant,) = resolve_variants([DIGITS_CONFIG, tmp_path / "other.yaml"], [name], SMALL_COMPARISON)
    assert variant.name == name.removeprefix("lit_ddpm.")
    assert as_config(variant.module.objective) == as_config(objective)


PROJECT = """
from dataclasses import dataclass

from lit_ddpm import Objective, Weighting


@dataclass(eq=False)
class RootSNR(Weighting):
    power: float = 0.5

    def __call__(self, denoiser, t):
        return denoiser.schedule.snr(t) ** self.power


class HuberLoss(Objective):
    def __call__(self, denoiser, pred):
        return ((pred.x0_hat - pred.x_0) ** 2 + 1).sqrt().flatten(1).mean(1)


@dataclass
class Threshold(Weighting):
    t: int

    def __call__(self, denoiser, t):
        return (t > self.t).double()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A package with objectives, in the path of imports."""
    (tmp_path / "huber_project").mkdir()
    (tmp_path / "huber_project" / "losses.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "huber_project.losses"


@pytest.mark.usefixtures("in_this_process")
def test_classes_of_a_project_are_compared(project, tmp_path):
    names = [f"{project}.RootSNR", f"{project}.HuberLoss"]
    plan = prepare([DIGITS_CONFIG], names, output_dir=tmp_path / "runs", overrides=SMALL_COMPARISON)
    assert run(tmp_path / "runs", 0)
    assert (tmp_path / "runs" / "RootSNR" / "seed_0" / "bound.json").is_file()
    assert list(collect(tmp_path / "runs").missing) == ["HuberLoss, seed 0"]
    root_snr, huber_loss = plan.variants
    snr = root_snr.module.denoiser.schedule.snr(torch.arange(2, 33))
    torch.testing.assert_close(root_snr.weight, snr**0.5)
    torch.testing.assert_close(huber_loss.weight, torch.full_like(snr, 0.5), rtol=1e-4, atol=0)  # of a small error


def test_a_class_with_arguments_needs_an_overlay(project):
    name = f"{project}.Threshold"
    with pytest.raises(ValueError, match=f"objective = {name} needs an overlay that sets its arguments: .*'t'"):
        resolve_variants([DIGITS_CONFIG], [name], SMALL_COMPARISON)
    with pytest.raises(ValueError, match=r"\(module '.*losses' has no attribute 'RootSN'\)\.$"):
        resolve_variants([DIGITS_CONFIG], [f"{project}.RootSN"], SMALL_COMPARISON)
