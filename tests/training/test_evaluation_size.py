"""A test of a part of the images and timesteps, and of the part that a precision needs."""

import math

import numpy as np
import pytest
from helpers import FewDigits, tiny_module, trainer

from lit_ddpm import Evaluation
from lit_ddpm._internal.files import read_arrays
from lit_ddpm.likelihood.report import Report


def measured(tmp_path, evaluation=None, devices=1, module=None, **settings):
    module = module or tiny_module(evaluation=evaluation or Evaluation())
    strategy = "auto" if devices == 1 else "ddp_fork"
    trainer(devices=devices, strategy=strategy).test(module, FewDigits(**settings), verbose=False)
    return Report.load(tmp_path / "bound.json"), read_arrays(tmp_path / "bound.npz")


@pytest.mark.parametrize(("devices", "eval_batch_size"), [(1, 50), (1, 7), (2, 7)])
def test_a_random_part_of_the_images_is_the_same_part_of_the_exact_test(tmp_path, devices, eval_batch_size):
    _, exact = measured(tmp_path)
    settings = {"devices": devices, "eval_batch_size": eval_batch_size}
    report, images = measured(tmp_path, Evaluation(num_images=20), **settings)
    assert len(set(images["index"])) == report.num_images == 20
    assert images["index"].max() > 20  # not the first ones
    rows = images["index"]
    np.testing.assert_allclose(images["total"], exact["total"][rows], atol=1e-4)
    assert report.terms["total"].value == pytest.approx(exact["total"][rows].mean(), abs=1e-5)
    assert report.best_variance is not None
    assert "20 random images of 50, 20 network calls an image" in str(report)


def test_a_part_of_the_timesteps_is_an_unbiased_estimate(tmp_path):
    _, exact = measured(tmp_path)
    report, images = measured(tmp_path, Evaluation(num_timesteps=5))
    assert (report.num_calls, report.best_variance) == (5, None)
    assert "50 images, 5 random timesteps of 20 an image" in str(report)
    difference = images["total"] - exact["total"]
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(50)


def test_second_moments_of_a_validation_sharpen_an_estimate(tmp_path):
    module = tiny_module(evaluation=Evaluation(20, num_timesteps=5))
    plain, _ = measured(tmp_path, module=module)
    trainer().validate(module, FewDigits(), verbose=False)
    sharper, _ = measured(tmp_path, module=module)
    assert sharper.terms["diffusion"].se_noise < plain.terms["diffusion"].se_noise


def test_a_target_chooses_the_test(tmp_path):
    _, exact = measured(tmp_path)
    target = 1.5 * exact["total"].std(ddof=1) / math.sqrt(50)
    report, _ = measured(tmp_path, Evaluation(target_se=target))
    assert report.num_images < 50
    assert report.terms["total"].se_images < 1.3 * target
    assert abs(report.terms["total"].value - exact["total"].mean()) < 4 * target


def test_a_target_chooses_the_same_test_on_two_ranks(tmp_path):
    evaluations = Evaluation(target_se=0.3), Evaluation(target_se=0.3)
    reports, images = zip(
        *(measured(tmp_path, evaluation, devices) for evaluation, devices in zip(evaluations, (1, 2), strict=True)),
        strict=True,
    )
    assert (reports[0].num_images, reports[0].num_calls) == (reports[1].num_images, reports[1].num_calls)
    assert reports[0].num_images < 50
    assert images[0]["index"].tolist() == images[1]["index"].tolist()
    np.testing.assert_allclose(images[0]["total"], images[1]["total"], atol=1e-4)


def test_the_images_are_chosen_within_the_limit_of_batches(tmp_path):
    module = tiny_module(evaluation=Evaluation(num_images=5))
    trainer(limit_test_batches=2).test(module, FewDigits(eval_batch_size=6), verbose=False)
    assert "5 random images of 50" in str(Report.load(tmp_path / "bound.json"))
    images = read_arrays(tmp_path / "bound.npz")
    assert len(images["index"]) == 5
    assert images["index"].max() < 12
    module.evaluation = Evaluation()
    trainer(limit_test_batches=2).test(module, FewDigits(eval_batch_size=6), verbose=False)
    assert "12 images, 20 network calls an image" in str(Report.load(tmp_path / "bound.json"))  # not a random part
    module.evaluation = Evaluation(num_images=13)
    with pytest.raises(ValueError, match=r"num_images = 13 must be in 1\.\.12, the images of the test split"):
        trainer(limit_test_batches=2).test(module, FewDigits(eval_batch_size=6), verbose=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_se": 0.0}, "target_se = 0.0 must be positive"),
        ({"target_se": math.nan}, "target_se = nan must be positive"),
        ({"target_se": 1, "num_images": 3}, "target_se chooses num_images and num_timesteps: set it alone"),
        ({"target_se": 1, "num_timesteps": 3}, "target_se chooses num_images and num_timesteps: set it alone"),
        ({"num_val_timesteps": 1}, "num_val_timesteps = 1 must be at least 2, or None for all T"),
    ],
)
def test_an_impossible_setting_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(**settings)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (
            Evaluation(target_se=1e-6),
            r"target_se = 1e-06 is unattainable: all 50 images of the test .* give about",
        ),
        (Evaluation(num_images=51), r"num_images = 51 must be in 1\.\.50, the images of the test split"),
        (Evaluation(num_images=0), r"num_images = 0 must be in 1\.\.50"),
        (Evaluation(num_timesteps=21), r"num_timesteps = 21 must be in 2\.\.20, the schedule's T"),
        (Evaluation(num_timesteps=1), r"num_timesteps = 1 must be in 2\.\.20"),
    ],
)
def test_an_impossible_test_says_what_is_possible(tmp_path, evaluation, message):
    with pytest.raises(ValueError, match=message):
        measured(tmp_path, evaluation)


def test_settings_hold_for_a_block():
    evaluation = Evaluation(8)
    with evaluation.using(target_se=0.02, num_images=None, exact=True):
        assert (evaluation.target_se, evaluation.num_images, evaluation.exact) == (0.02, None, True)
    assert (evaluation.num_val_timesteps, evaluation.target_se, evaluation.exact) == (8, None, False)
    for settings in ({"target_se": -1.0}, {"target_se": 0.1, "num_images": 5}):
        with pytest.raises(ValueError, match="target_se"), evaluation.using(**settings):
            raise AssertionError
        assert vars(evaluation) == vars(Evaluation(8))
