import json
from pathlib import Path

import pytest
import torch
from helpers import (
    CountingFeatures,
    digits,
    evaluations,
    fit_with_sample_metrics,
    small_sample_metrics,
    tiny_module,
    trainer,
)
from lightning import LightningDataModule
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_ddpm import DDPM
from lit_ddpm.data import DigitsDataModule, to_float, to_uint8
from lit_ddpm.metrics.digits_features import DigitsFeatures


def test_real_statistics_are_measured_once():
    for expected in (2 + 1257 + 70, 2 + 70, 2 + 70):  # two images probe the extractor
        callback = small_sample_metrics(CountingFeatures())
        fit_with_sample_metrics(callback)
        assert callback.extractor.seen == expected
    assert len({json.dumps(record["metrics"]) for record in evaluations()}) == 1


class Inverted(DDPM):
    def unpack_batch(self, batch):
        return -batch[0], {}


def test_other_images_have_other_statistics():
    fit_with_sample_metrics(data=digits())
    fit_with_sample_metrics(data=digits(split_seed=1))
    fit_with_sample_metrics(module=tiny_module(Inverted))
    assert len(list((Path(torch.hub.get_dir()) / "lit_ddpm").iterdir())) == 3


def test_a_foreign_statistics_file_is_refused_at_the_start():
    for seed in (0, 1):
        fit_with_sample_metrics(small_sample_metrics(cache_dir=f"cache_{seed}"), data=digits(split_seed=seed))
    (mine,), (other,) = (list(Path(f"cache_{seed}").iterdir()) for seed in (0, 1))
    mine.write_bytes(other.read_bytes())
    module = tiny_module()
    with pytest.raises(
        ValueError, match=r"do not belong to this data and extractor: it has another data, first_images; remove"
    ):
        fit_with_sample_metrics(small_sample_metrics(cache_dir="cache_0"), module=module)
    assert module.trainer.global_step == 0


def test_an_unwritable_cache_is_a_warning():
    Path("file").write_text("")
    with pytest.warns(UserWarning, match="statistics of real images are not cached: file"):
        fit_with_sample_metrics(small_sample_metrics(cache_dir="file"))
    assert len(evaluations()) == 1


def test_real_images_are_never_augmented():
    seen = []

    class Flipping(DigitsDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
            return images.flip(-1), labels

    class Keeping(DigitsFeatures):
        def forward(self, images):
            seen.append(images.clone())
            return super().forward(images)

    fit_with_sample_metrics(small_sample_metrics(Keeping(), num_val_samples=8), data=Flipping(batch_size=256))
    real = torch.cat(seen[1:])[:1257]  # after the probe
    assert torch.equal(real, to_uint8(to_float(digits().splits()["train"].images, 17), 17))


def test_data_without_reference_images_is_refused():
    class Foreign(LightningDataModule):
        image_shape, levels = (1, 8, 8), 17

        def setup(self, stage):
            self.digits = digits()
            self.digits.setup(stage)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(self.digits.splits()["train"], batch_size=256)

    with pytest.raises(ValueError, match=r"give the data module, Foreign, a method reference_dataloader\(\)"):
        fit_with_sample_metrics(data=Foreign())
    with pytest.raises(ValueError, match="SampleMetrics needs a DDPM, not a BoringModel"):
        trainer(callbacks=small_sample_metrics()).fit(BoringModel())
