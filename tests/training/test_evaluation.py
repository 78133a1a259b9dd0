import json

import pytest
from helpers import FewDigits, tiny_module, trainer

from lit_ddpm import GaussianDecoder


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_the_bound_is_the_same_on_any_number_of_processes(devices):
    """50 images on 3 processes in batches of 7: the image that is repeated to pad a share must not count."""
    results = []
    for count in (1, devices):
        strategy = "auto" if count == 1 else "ddp_fork"
        (result,) = trainer(devices=count, strategy=strategy).test(
            tiny_module(), FewDigits(eval_batch_size=7), verbose=False
        )
        results.append(result)
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, abs=1e-5), key


def test_the_ledger_is_printed_logged_and_written(capsys, tmp_path):
    (result,) = trainer().test(tiny_module(), FewDigits(), verbose=False)
    assert "per-pixel histogram" in capsys.readouterr().out
    saved = json.loads((tmp_path / "ledger.json").read_text())
    assert result["test/bpd"] == pytest.approx(saved["terms"]["total"]["value"], rel=1e-6)
    assert result["test/bpd_histogram"] == pytest.approx(saved["baseline"]["value"], rel=1e-6)
    names = ("bpd_prior", "bpd_diffusion", "bpd_reconstruction", "bpd_se_images", "bpd_se_noise")
    assert {f"test/{name}" for name in names} <= set(result)
    assert saved["num_images"] == 50
    assert saved["num_calls"] == 20
    assert sum(result[f"test/{name}"] for name in names[:3]) == pytest.approx(result["test/bpd"], rel=1e-6)


def test_the_bound_does_not_depend_on_the_batch_size():
    bits = [trainer().test(tiny_module(), FewDigits(eval_batch_size=n), verbose=False)[0]["test/bpd"] for n in (50, 7)]
    assert bits[0] == pytest.approx(bits[1], abs=1e-5)


def test_real_valued_data_is_measured_in_nats():
    module = tiny_module(decoder=GaussianDecoder())
    (result,) = trainer().test(module, FewDigits(), verbose=False)
    assert "test/nats_per_dim" in result
    assert not any("bpd" in key for key in result)
