import pytest
import torch
from helpers import DIGITS_CONFIG, SMALL_COMPARISON, TinyNetwork

from lit_ddpm import (
    CosineSchedule,
    Denoiser,
    EpsParametrization,
    LinearSchedule,
    LogSNRSchedule,
    MeanParametrization,
    VParametrization,
    X0Parametrization,
)
from lit_ddpm.__main__ import main
from lit_ddpm.compare import audit

SCHEDULES = [LinearSchedule(1000), CosineSchedule(300), LogSNRSchedule(num_steps=256, log_snr_start=13, log_snr_end=-6)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "parametrization", [X0Parametrization(), EpsParametrization(), VParametrization(), MeanParametrization()]
)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_audit_finds_the_forms_equal(schedule, parametrization, variance):
    denoiser = Denoiser(TinyNetwork(), schedule, parametrization, variance)
    found = audit(denoiser, [torch.float64, torch.float32, torch.bfloat16], image_shape=(1, 2, 2))
    found.check()
    assert list(found.values) == ["float64", "float32", "bfloat16"]
    assert found.values["float64"].shape == found.gradients["float64"].shape == (schedule.num_steps - 1,)
    assert found.largest("float32") < 1e-5
    assert found.largest("bfloat16") < 1e-2


def test_the_audit_finds_a_wrong_weight(monkeypatch, tmp_path, capsys):
    from lit_ddpm.diffusion import objective

    right = objective.kl_weight
    monkeypatch.setattr(
        objective,
        "kl_weight",
        lambda schedule, t, variance: right(schedule, t, variance) * (1 + 2e-10 * (t == 7).double()),
    )
    found = audit(Denoiser(TinyNetwork(), LinearSchedule(20), VParametrization()))
    with pytest.raises(ArithmeticError, match="at t = 7"):
        found.check()
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "compare",
                "--config",
                DIGITS_CONFIG,
                "--objectives",
                "kl",
                "--output_dir",
                str(tmp_path / "runs"),
                *SMALL_COMPARISON,
            ]
        )
    assert stopped.value.code == 2
    assert "at t = 7" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "kl").exists()
