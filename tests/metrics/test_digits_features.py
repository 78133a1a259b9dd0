from argparse import Namespace

import pytest
import torch
from helpers import digits, sha256

from benchmarks import digits_classifier
from lit_ddpm.data import to_float, to_uint8
from lit_ddpm.metrics.digits_features import DigitsFeatures


def test_accuracy_of_the_bundled_classifier():
    split = digits().splits()["test"]
    _, logits = DigitsFeatures()(to_uint8(to_float(split.images, 17), 17))
    assert (logits.argmax(1) == split.labels).float().mean() >= 0.97
    assert DigitsFeatures.weights_path.stat().st_size <= 300 * 1024


def test_the_training_script_runs(monkeypatch, capsys):
    monkeypatch.setattr(digits_classifier, "EPOCHS", 2)
    before = sha256(DigitsFeatures.weights_path)
    digits_classifier.main(Namespace(write=False))
    printed = capsys.readouterr().out
    for line in ("accuracy on test", "KiB of weights"):
        assert line in printed
    assert sha256(DigitsFeatures.weights_path) == before


def test_other_images_than_digits_are_refused():
    with pytest.raises(ValueError, match=r"shape \[1, 8, 8\], not images of \[3, 32, 32\]"):
        DigitsFeatures()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
