"""Sample metrics with few images."""

import json
from pathlib import Path

from helpers.training import digits, tiny_module, trainer
from lit_ddpm.callbacks import EMA, SampleMetrics
from lit_ddpm.metrics.digits_features import DigitsFeatures


def small_sample_metrics(extractor=None, **kwargs) -> SampleMetrics:
    defaults = {"num_samples": 70, "num_val_samples": 70, "kid_subsets": 3, "kid_subset_size": 20, "is_splits": 1}
    return SampleMetrics(extractor or DigitsFeatures(), **{**defaults, **kwargs})


def fit_with_sample_metrics(callback=None, module=None, data=None, ema=True, **kwargs):
    callbacks = [EMA(0.9)] * ema + [callback or small_sample_metrics()] + kwargs.pop("more", [])
    run = trainer(**{"callbacks": callbacks, "limit_val_batches": 1, "max_epochs": 1, **kwargs})
    run.fit(module or tiny_module(), data or digits())
    return run


def evaluations(directory=".") -> list[dict]:
    """The lines of sample_metrics.jsonl."""
    return [json.loads(line) for line in (Path(directory) / "sample_metrics.jsonl").read_text().splitlines()]


class CountingFeatures(DigitsFeatures):
    """Counts the images it is given."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)
