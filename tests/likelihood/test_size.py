"""A test of a part of the images and timesteps, and of the part that a precision needs."""

import math

import numpy as np
import pytest
from helpers import FewDigits, tiny_module, trainer

from lit_ddpm import Evaluation
from lit_ddpm._internal.files import read_arrays
from lit_ddpm.likelihood.report import Report
from lit_ddpm.likelihood.size import EvaluationSize, Spread


def measured(tmp_path, size, module=None, devices=1, **settings):
    module = module or tiny_module()
    module.evaluation.size = size
    strategy = "auto" if devices == 1 else "ddp_fork"
    trainer(devices=devices, strategy=strategy).test(module, FewDigits(**settings), verbose=False)
    return Report.load(tmp_path / "bound.json"), read_arrays(tmp_path / "bound.npz")


@pytest.mark.parametrize(("devices", "eval_batch_size"), [(1, 50), (1, 7), (2, 7)])
def test_a_random_part_of_the_images_is_the_same_part_of_the_exact_test(tmp_path, devices, eval_batch_size):
    _, exact = measured(tmp_path, EvaluationSize())
    settings = {"devices": devices, "eval_batch_size": eval_batch_size}
    report, images = measured(tmp_path, EvaluationSize(num_images=20), **settings)
    assert len(set(images["index"])) == report.num_images == 20
    assert images["index"].max() > 20  # not the first ones
    rows = images["index"]
    np.testing.assert_allclose(images["total"], exact["total"][rows], atol=1e-4)
    assert report.terms["total"].value == pytest.approx(exact["total"][rows].mean(), abs=1e-5)
    assert report.best_variance is not None
    assert "20 random images of 50, 20 network calls an image" in str(report)


def test_a_part_of_the_timesteps_is_an_unbiased_estimate(tmp_path):
    _, exact = measured(tmp_path, EvaluationSize())
    report, images = measured(tmp_path, EvaluationSize(num_timesteps=5))
    assert (report.num_calls, report.best_variance) == (5, None)
    assert "50 images, 5 random timesteps of 20 an image" in str(report)
    difference = images["total"] - exact["total"]
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(50)


def test_second_moments_of_a_validation_sharpen_an_estimate(tmp_path):
    module = tiny_module(evaluation=Evaluation(20))
    plain, _ = measured(tmp_path, EvaluationSize(num_timesteps=5), module)
    trainer().validate(module, FewDigits(), verbose=False)
    sharper, _ = measured(tmp_path, EvaluationSize(num_timesteps=5), module)
    assert sharper.terms["diffusion"].se_noise < plain.terms["diffusion"].se_noise


def test_the_fewest_calls_for_a_standard_error():
    """Against a search over all pairs, with the variance of the pilot at its upper limit: 1.1795 for 64 images."""
    spread = Spread(images=0.04, noise=0.9, num_images=64)
    for target_se, available in ((0.02, 800), (0.01, 700), (0.05, 800)):
        size = spread.smallest(target_se, available, num_steps=256)
        possible = [
            (n * calls, n, calls)
            for n in range(2, available + 1)
            for calls in range(2, 257)
            if 1.1795 * (0.04 + 0.9 / (calls - 1)) / n <= target_se**2
        ]
        cost, *_ = min(possible)
        assert size.num_images * size.num_timesteps == pytest.approx(cost, rel=0.01)
        assert 1.1795 * (0.04 + 0.9 / (size.num_timesteps - 1)) / size.num_images <= 1.0001 * target_se**2


def test_a_test_has_at_least_two_kl_terms():
    """The variance of a single one, which has no strata, does not follow from that of the pilot."""
    size = Spread(images=0.1, noise=0.04, num_images=64).smallest(0.02, 800, num_steps=100)
    assert size.num_timesteps == 3
    assert Spread(images=0.1, noise=0.04, num_images=64).smallest(0.02, 800, num_steps=2).num_timesteps == 2


def test_a_target_chooses_the_test(tmp_path):
    _, exact = measured(tmp_path, EvaluationSize())
    target = 1.5 * exact["total"].std(ddof=1) / math.sqrt(50)
    report, _ = measured(tmp_path, EvaluationSize(target_se=target))
    assert report.num_images < 50
    assert report.terms["total"].se_images < 1.3 * target
    assert abs(report.terms["total"].value - exact["total"].mean()) < 4 * target


def test_the_images_are_chosen_within_the_limit_of_batches(tmp_path):
    module = tiny_module()
    module.evaluation.size = EvaluationSize(num_images=5)
    trainer(limit_test_batches=2).test(module, FewDigits(eval_batch_size=6), verbose=False)
    assert "5 random images of 50" in str(Report.load(tmp_path / "bound.json"))
    images = read_arrays(tmp_path / "bound.npz")
    assert len(images["index"]) == 5
    assert images["index"].max() < 12
    module.evaluation.size = EvaluationSize()
    trainer(limit_test_batches=2).test(module, FewDigits(eval_batch_size=6), verbose=False)
    assert "12 images, 20 network calls an image" in str(Report.load(tmp_path / "bound.json"))  # not a random part
    module.evaluation.size = EvaluationSize(num_images=13)
    with pytest.raises(ValueError, match=r"num_images = 13 must be in 1\.\.12, the images of the test split"):
        trainer(limit_test_batches=2).test(module, FewDigits(eval_batch_size=6), verbose=False)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (EvaluationSize(target_se=0.0), "target_se = 0.0 must be positive"),
        (EvaluationSize(target_se=math.nan), "target_se = nan must be positive"),
        (EvaluationSize(target_se=1e-6), r"target_se = 1e-06 is less than the 50 images of the test split allow, .* a"),
        (EvaluationSize(target_se=1, num_images=3), "target_se chooses num_images and num_timesteps: set it alone"),
        (EvaluationSize(num_images=51), r"num_images = 51 must be in 1\.\.50, the images of the test split"),
        (EvaluationSize(num_images=0), r"num_images = 0 must be in 1\.\.50"),
        (EvaluationSize(num_timesteps=21), r"num_timesteps = 21 must be in 2\.\.20, the schedule's T"),
        (EvaluationSize(num_timesteps=1), r"num_timesteps = 1 must be in 2\.\.20"),
    ],
)
def test_an_impossible_test_says_what_is_possible(tmp_path, size, message):
    with pytest.raises(ValueError, match=message):
        measured(tmp_path, size)
