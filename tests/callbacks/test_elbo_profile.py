from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FewDigits, fit, read_csv, tiny_module, trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lit_ddpm.callbacks import ELBOProfile, Performance


def profile_rows(path):
    return [{key: float(value) for key, value in row.items()} for row in read_csv(path)]


def test_the_profile_is_drawn_every_n_epochs():
    fit(ELBOProfile(every_n_epochs=2), max_epochs=4, num_sanity_val_steps=1)
    assert sorted(path.name for path in Path("profile").glob("*terms*")) == [
        "val_elbo_terms_0000008.png",
        "val_elbo_terms_0000016.png",
    ]


def test_the_profile_adds_no_network_calls():
    calls = []
    for callbacks in ([], [ELBOProfile(), Performance()]):
        module = tiny_module()
        count = [0]
        module.denoiser.network.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        fit(*callbacks, module=module)
        calls.append(count[0])
    assert calls[0] == calls[1]


def test_the_profile_of_a_test_is_exact():
    module = tiny_module()
    checkpoint = fit(module=module, enable_checkpointing=True).checkpoint_callback.best_model_path
    run = trainer(callbacks=ELBOProfile(), logger=CSVLogger(".", "", ""))
    run.test(module, FewDigits(), ckpt_path=checkpoint, verbose=False)
    rows = profile_rows("profile/test_elbo_profile_0000008.csv")
    report = module.evaluation.last_report
    assert [row["t"] for row in rows] == list(range(2, 21))
    assert [row["kl"] for row in rows] == pytest.approx(report.profile)
    assert sum(row["kl"] for row in rows) == pytest.approx(report.terms["diffusion"].value)
    (line,) = read_csv("metrics.csv")
    assert float(line["step"]) == 7  # counted from 0, as in the fit
    assert "test/bpd" in line


def test_a_test_after_a_fit_has_the_last_step():
    module = tiny_module()
    run = fit(ELBOProfile(), module=module, max_epochs=3, logger=CSVLogger(".", "", ""))
    run.test(module, FewDigits(), verbose=False)
    assert Path("profile/test_elbo_profile_0000012.csv").exists()
    (line,) = [row for row in read_csv("metrics.csv") if row["test/bpd"]]
    assert float(line["step"]) == 11


def test_the_training_estimate_is_the_mean_over_batches():
    seen = torch.zeros(2, 19, dtype=torch.float64)
    module = tiny_module()
    original = module.training_step

    def recording(batch, batch_idx):
        loss = original(batch, batch_idx)
        t, kl = module.last_kl.t, module.last_kl.kl
        seen.index_add_(1, t - 2, torch.stack([kl, torch.ones_like(kl)]).detach())
        return loss

    module.training_step = recording
    fit(ELBOProfile(), module=module, max_epochs=1)
    rows = profile_rows("profile/val_elbo_profile_0000004.csv")
    expected = seen[0] / seen[1] / np.log(2)
    assert [row["kl_training"] for row in rows] == pytest.approx(expected.tolist(), nan_ok=True)
    assert seen[1].sum() > 900


def test_the_profile_is_the_same_on_two_processes():
    tables = []
    for count in (1, 2):
        run = trainer(
            callbacks=ELBOProfile(),
            devices=count,
            strategy="auto" if count == 1 else "ddp_fork",
            default_root_dir=str(count),
        )
        run.test(tiny_module(), FewDigits(), verbose=False)
        tables.append(profile_rows(f"{count}/profile/test_elbo_profile_0000000.csv"))
    for one, two in zip(*tables, strict=True):
        assert one == pytest.approx(two, rel=1e-5, nan_ok=True)


def test_other_modules_and_bad_settings_are_refused():
    for callback in (ELBOProfile(), Performance()):
        with pytest.raises(ValueError, match="needs a DDPM, not a BoringModel"):
            trainer(callbacks=callback).fit(BoringModel())
    with pytest.raises(ValueError, match="every_n_epochs = 0 of ELBOProfile"):
        ELBOProfile(every_n_epochs=0)
