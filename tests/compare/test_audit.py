import pytest
import torch
from helpers import DIGITS_CONFIG, PARAMETRIZATIONS, SMALL_COMPARISON, TinyNetwork, error_of

from lit_ddpm import (
    CosineSchedule,
    Denoiser,
    LinearSchedule,
    LogSNRSchedule,
    VParametrization,
)
from lit_ddpm.compare import audit

SCHEDULES = [LinearSchedule(1000), CosineSchedule(300), LogSNRSchedule(num_steps=256, log_snr_start=13, log_snr_end=-6)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
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
    command = ["compare", "--config", DIGITS_CONFIG, "--objectives", "kl", "--output_dir", str(tmp_path / "runs")]
    assert "at t = 7" in error_of(capsys, [*command, *SMALL_COMPARISON])
    assert not (tmp_path / "runs" / "kl").exists()
