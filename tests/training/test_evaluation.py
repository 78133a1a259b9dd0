import json
import math
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import FewDigits, LabelledNetwork, fit, read_csv, tiny_module, trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_ddpm import DDPM, DiscretizedGaussian, GaussianDecoder, bits_per_dim, variational_bound
from lit_ddpm._internal.files import read_arrays
from lit_ddpm.diffusion.objective import kl_forms
from lit_ddpm.likelihood.report import TERMS, Report
from lit_ddpm.training.evaluation import Evaluation
from lit_ddpm.training.kl_metrics import kl_metrics


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_the_bound_is_the_same_on_any_number_of_processes(devices, tmp_path):
    """50 images on 3 processes in batches of 7: the image that is repeated to pad a share must not count."""
    results, images = [], []
    for count in (1, devices):
        strategy = "auto" if count == 1 else "ddp_fork"
        (result,) = trainer(devices=count, strategy=strategy).test(
            tiny_module(), FewDigits(eval_batch_size=7), verbose=False
        )
        results.append(result)
        images.append(read_arrays(tmp_path / "bound.npz"))
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, abs=1e-5), key
    assert images[0]["index"].tolist() == images[1]["index"].tolist() == list(range(50))
    np.testing.assert_allclose(images[0]["total"], images[1]["total"], atol=1e-4)


@pytest.mark.parametrize(("num_val_timesteps", "num_calls"), [(2, 2), (7, 7), (20, 20), (30, 20), (None, 20)])
def test_validation_takes_the_network_calls_of_its_setting(num_val_timesteps, num_calls):
    module, calls = tiny_module(evaluation=Evaluation(num_val_timesteps)), []
    module.denoiser.network.register_forward_hook(lambda *args: calls.append(len(args[1][0])))
    trainer().validate(module, FewDigits(eval_batch_size=50), verbose=False)
    assert calls == [50] * num_calls
    assert module.evaluation.last_report.num_calls == num_calls
    calls.clear()
    trainer().test(module, FewDigits(eval_batch_size=50), verbose=False)
    assert calls == [50] * 20


def test_the_report_is_printed_logged_and_written(capsys, tmp_path):
    (result,) = trainer().test(tiny_module(), FewDigits(), verbose=False)
    assert "per-pixel histogram" in capsys.readouterr().out
    saved = json.loads((tmp_path / "bound.json").read_text())
    assert result["test/bpd"] == pytest.approx(saved["terms"]["total"]["value"], rel=1e-6)
    assert result["test/bpd_histogram"] == pytest.approx(saved["baseline"]["value"], rel=1e-6)
    names = ("bpd_prior", "bpd_diffusion", "bpd_reconstruction", "bpd_se_images", "bpd_se_noise")
    assert {f"test/{name}" for name in names} <= set(result)
    assert saved["num_images"] == 50
    assert saved["num_calls"] == 20
    assert sum(result[f"test/{name}"] for name in names[:3]) == pytest.approx(result["test/bpd"], rel=1e-6)


def test_the_bound_of_each_image_is_written(tmp_path):
    for batch_size in (50, 7):
        trainer().test(tiny_module(), FewDigits(eval_batch_size=batch_size), verbose=False)
        report, images = Report.load(tmp_path / "bound.json"), read_arrays(tmp_path / "bound.npz")
        assert images["index"].tolist() == list(range(50))
        for term in TERMS:
            assert images[term].mean() == pytest.approx(report.terms[term].value, rel=1e-9)
            se = images[term].std(ddof=1) / math.sqrt(50)
            assert se == pytest.approx(report.terms[term].se_images, rel=1e-6)
    np.testing.assert_allclose(images["total"], sum(images[term] for term in TERMS[:3]), rtol=1e-9)


def test_the_bound_does_not_depend_on_the_batch_size():
    bits = [trainer().test(tiny_module(), FewDigits(eval_batch_size=n), verbose=False)[0]["test/bpd"] for n in (50, 7)]
    assert bits[0] == pytest.approx(bits[1], abs=1e-5)


def test_real_valued_data_is_measured_in_nats():
    module = tiny_module(decoder=GaussianDecoder())
    (result,) = trainer().test(module, FewDigits(), verbose=False)
    assert "test/nats_per_dim" in result
    assert not any("bpd" in key for key in result)


def labeled_images(count):
    torch.manual_seed(0)
    module = tiny_module(network=LabelledNetwork(10))
    return module.denoiser, torch.randint(0, 17, (count, 1, 8, 8)) / 8 - 1, torch.arange(count) % 10


@pytest.mark.parametrize(("rank", "indices"), [(0, [0, 3, 6]), (1, [1, 4, 0]), (2, [2, 5, 1])])
def test_repeated_images_of_a_share_do_not_count(rank, indices):
    """Seven images on three ranks, in batches of two and one; ranks 1 and 2 repeat an image to have three."""
    denoiser, x_0, label = labeled_images(7)
    module = Namespace(denoiser=denoiser, decoder=DiscretizedGaussian(17))
    state = Namespace(fn="validate")
    loader = DataLoader(x_0, batch_size=2)
    of_rank = Namespace(val_dataloaders=loader, global_rank=rank, world_size=3, state=state, validating=True)
    evaluation = Evaluation(4)
    evaluation.begin(of_rank, module, "val")
    for rows in (indices[:2], indices[2:]):
        evaluation.update(x_0[rows], {"label": label[rows]})
    own = indices if rank == 0 else indices[:2]
    expected = variational_bound(denoiser, x_0[own], module.decoder, 4, index=torch.tensor(own), label=label[own])
    of_rank.world_size = 1  # the other ranks are not there to gather from
    report = evaluation.finish(of_rank)
    assert report.num_images == len(own)
    assert report.terms["total"].value == pytest.approx(float(bits_per_dim(expected.total, 64).mean()), rel=1e-5)
    assert evaluation.last_bound.index.tolist() == own
    torch.testing.assert_close(evaluation.state_dict()["found_moment"], expected.second_moment, rtol=1e-4, atol=0)


def test_a_rank_without_images_adds_none(tmp_path):
    """Three images on four ranks, whose batches of repeated images do not count."""
    images = FewDigits().splits()["test"].images[:3].float() / 8 - 1
    module = tiny_module(decoder=DiscretizedGaussian(17))
    loader = DataLoader(TensorDataset(images), batch_size=2)
    (alone,) = trainer().test(module, loader, verbose=False)
    (together,) = trainer(devices=4, strategy="ddp_fork").test(module, loader, verbose=False)
    assert together["test/bpd"] == pytest.approx(alone["test/bpd"], abs=1e-5)
    assert read_arrays(tmp_path / "bound.npz")["index"].tolist() == [0, 1, 2]


def test_an_empty_split_is_refused():
    evaluation = Evaluation()
    trainer_state = Namespace(val_dataloaders=None, global_rank=0, world_size=1, state=Namespace(fn="validate"))
    evaluation.begin(trainer_state, tiny_module(), "val")
    with pytest.raises(ValueError, match="the val split has no images"):
        evaluation.finish(trainer_state)


def test_settings_of_a_test_last_for_a_block():
    evaluation = Evaluation(num_images=7)
    with evaluation.using(num_images=3, num_timesteps=None):
        assert (evaluation.num_images, evaluation.num_timesteps) == (3, None)
    assert evaluation.num_images == 7
    with pytest.raises(ValueError, match="set it alone"), evaluation.using(num_images=3, target_se=0.1):
        pass
    assert (evaluation.num_images, evaluation.target_se) == (7, None)


def test_a_dataset_without_a_length_is_measured_too():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(x_0)

    _, x_0, _ = labeled_images(7)
    module = tiny_module(decoder=DiscretizedGaussian(17))
    loaders = [DataLoader(dataset, batch_size=3) for dataset in (Stream(), x_0)]
    results = [trainer().validate(module, loader, verbose=False)[0] for loader in loaders]
    assert results[0] == results[1]


def test_the_logged_bound_is_that_of_seed_0():
    """All models are measured with one noise."""
    module, data = tiny_module(), FewDigits(eval_batch_size=20)
    (result,) = trainer().test(module, data, verbose=False)
    x_0 = data.splits()["test"].images / 8 - 1
    bound = variational_bound(module.denoiser, x_0, DiscretizedGaussian(17), seed=0)
    assert result["test/bpd"] == pytest.approx(float(bits_per_dim(bound.total, 64).mean()), abs=1e-5)


def test_metrics_of_the_kl_are_weighted_and_leave_out_the_first_timestep():
    denoiser, x_0, label = labeled_images(4)
    pred = denoiser.predict(x_0, torch.tensor([2, 1, 9, 20]), torch.randn_like(x_0), label=label)
    weight = torch.tensor([3.0, 100.0, 0.5, 2.0], dtype=torch.float64)
    metrics = kl_metrics(denoiser, pred, weight)
    assert metrics.t.tolist() == [2, 9, 20]
    kl, kl_from_x0_mse, x0_mse = (form[[0, 2, 3]] for form in kl_forms(denoiser, replace(pred, t=pred.t.clamp(min=2))))
    for name, values in (("kl", kl), ("kl_from_x0_mse", kl_from_x0_mse), ("x0_mse", x0_mse)):
        expected = float((weight[[0, 2, 3]] * values).sum()) / 3
        assert float(metrics.values[f"train/{name}"]) == pytest.approx(expected, rel=1e-9)
    first = denoiser.predict(x_0[:1], torch.tensor([9]), torch.zeros_like(x_0[:1]), label=label[:1])
    assert len(kl_metrics(denoiser, first, weight[:1]).kl) == 1


@pytest.mark.parametrize(("forms", "gap"), [(([2e-6, 3.0], [2.2e-6, 3.0]), 0.1), (([0.0, 3.0], [0.0, 1.5]), 0.5)])
def test_the_gap_is_the_largest_relative_difference(monkeypatch, forms, gap):
    denoiser, x_0, label = labeled_images(2)
    pred = denoiser.predict(x_0, torch.tensor([2, 9]), torch.randn_like(x_0), label=label)
    forms = tuple(torch.tensor(form, dtype=torch.float64) for form in (*forms, [1.0, 1.0]))
    monkeypatch.setattr("lit_ddpm.training.kl_metrics.kl_forms", lambda *args: forms)
    values = kl_metrics(denoiser, pred, torch.ones(2, dtype=torch.float64)).values
    assert float(values["train/form_gap"]) == pytest.approx(gap)


def test_second_moments_of_another_schedule_are_discarded():
    for moments in ((torch.ones(19), torch.ones(19)), (None, torch.ones(19)), (None, None)):
        state = dict(zip(("initial_moment", "found_moment"), moments, strict=True))
        evaluation = Evaluation(4)
        evaluation.load_state_dict(state, num_steps=20)
        assert evaluation.state_dict() == state
        evaluation.load_state_dict(state, num_steps=21)
        assert evaluation.state_dict() == {"initial_moment": None, "found_moment": None}


def test_each_validation_passes_its_second_moments_to_the_next():
    module = tiny_module()
    fit(module=module, max_epochs=1, num_sanity_val_steps=1)
    first = module.evaluation.state_dict()
    assert first["initial_moment"] is None  # that of a sanity check is not used
    assert len(first["found_moment"]) == 19
    trainer(limit_val_batches=1).validate(module, FewDigits(), verbose=False)
    assert module.evaluation.state_dict()["initial_moment"] is None
    module = tiny_module()
    fit(module=module, max_epochs=2)
    assert torch.equal(module.evaluation.state_dict()["initial_moment"], first["found_moment"])


@pytest.mark.parametrize(("max_epochs", "step"), [(0, 0), (1, 3)])
def test_results_are_logged_at_the_last_step_of_training(max_epochs, step):
    module = tiny_module()
    if max_epochs:
        fit(module=module, max_epochs=max_epochs, limit_val_batches=0)  # four steps, counted from 0
    trainer(logger=CSVLogger(".", name="", version="")).test(module, FewDigits(), verbose=False)
    assert [int(row["step"]) for row in read_csv("metrics.csv")] == [step]


def test_a_subclass_whose_setup_does_not_call_its_base_is_refused():
    class Mine(DDPM):
        def setup(self, stage):
            pass

    for start in (trainer().fit, trainer().test):
        with pytest.raises(RuntimeError, match=r"setup of a DDPM must call super\(\).setup\(stage\)"):
            start(tiny_module(Mine), datamodule=FewDigits())


def test_a_target_replaces_the_numbers_of_the_constructor():
    evaluation = Evaluation(num_images=7, num_timesteps=5, exact=True)
    with evaluation.using(target_se=0.1):
        assert (evaluation.num_images, evaluation.num_timesteps, evaluation.target_se) == (None, None, 0.1)
        assert evaluation.exact
    assert (evaluation.num_images, evaluation.num_timesteps, evaluation.target_se) == (7, 5, None)
