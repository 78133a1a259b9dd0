"""Labels of samples, and ``predict`` of Lightning's own Trainer."""

import numpy as np
import pytest
import torch
from helpers import FewDigits, LabelledNetwork, tiny_module, trainer
from lightning import Callback

from lit_ddpm.cli.trainer import Trainer
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.training.sampling import SampleChunk


def conditional(image_shape=(1, 8, 8)):
    module = tiny_module(network=LabelledNetwork(10))
    module.observe(DataSpec(image_shape=image_shape))
    return module


def test_one_label_for_all_images():
    module = conditional()
    expected = module.sample(4, label=torch.tensor([3, 3, 3, 3]))
    assert torch.equal(module.sample(4, label=3), expected)
    assert torch.equal(module.sample(4, label=[3, 3, 3, 3]), expected)
    assert torch.equal(module.sample(4, label=np.int64(3)), expected)
    assert not torch.equal(module.sample(4, label=[3, 3, 3, 4]), expected)
    assert not torch.equal(module.sample(4, label=10), expected)  # without a label


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([3, 4], r"label has shape \[2\]: it must be an integer or have 4 of them"),
        ([[3], [4], [3], [4]], r"label has shape \[4, 1\]"),
        (11, "label = 11 must be 0 to 9, or 10 for no label"),
        (-1, "label = -1 must be 0 to 9"),
        (0.5, "label = 0.5 must be 0 to 9"),
    ],
)
def test_labels_that_do_not_fit_are_refused(label, message):
    with pytest.raises(ValueError, match=message):
        conditional().sample(4, label=label)


def test_chunks_cover_the_images_once():
    module = tiny_module()
    chunks = SampleChunk.split(module.sampler, 20, seed=3)
    assert [(chunk.seed, chunk.num_images) for chunk in chunks] == [(3, 8), (3, 8), (3, 4)]
    assert [index for chunk in chunks for index in chunk.indices] == list(range(20))


def test_predict_of_lightning_draws_images_of_a_seed():
    module = tiny_module()
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    chunks = trainer().predict(module)
    assert [len(chunk) for chunk in chunks] == [8] * 8
    assert torch.equal(torch.cat(chunks), module.sample(64, seed=0))


@pytest.mark.parametrize("make_trainer", [trainer, lambda: Trainer(accelerator="cpu", logger=False)])
def test_predict_with_data_draws_under_its_conditions(make_trainer):
    """An image of each test image's class; a module that has seen no data learns the shape from the data module."""
    module, data = conditional(image_shape=None), FewDigits(eval_batch_size=20)
    images = torch.cat(make_trainer().predict(module, datamodule=data))
    labels = data.splits()["test"].labels
    assert images.shape == (50, 1, 8, 8)
    assert torch.equal(images[:20], module.sample(20, seed=0, label=labels[:20]))
    assert torch.equal(images[40:], module.sample(10, seed=2, label=labels[40:]))


class Keep(Callback):
    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        torch.save(outputs, f"{trainer.global_rank}_{batch_idx}.pt")


def test_each_rank_and_batch_draws_other_images():
    module = tiny_module()
    run = trainer(devices=2, strategy="ddp_fork", callbacks=[Keep()])
    run.predict(module, datamodule=FewDigits(eval_batch_size=10), return_predictions=False)
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    for rank in (0, 1):
        for batch, count in enumerate((10, 10, 5)):
            expected = module.sample(count, seed=2 * batch + rank)
            torch.testing.assert_close(torch.load(f"{rank}_{batch}.pt"), expected)


def test_predict_names_the_weights_of_the_checkpoint(tmp_path):
    """Not those that were in memory when the file was asked for."""
    module = tiny_module()
    run = Trainer(accelerator="cpu", logger=False, max_epochs=1, default_root_dir=tmp_path, enable_progress_bar=False)
    run.fit(module, FewDigits())
    run.predict(module, num_samples=4, output_dir=str(tmp_path / "memory"))
    with torch.no_grad():
        module.denoiser.network.conv.weight.add_(1)
    for ckpt_path in ("best", run.checkpoint_callback.best_model_path):
        run.predict(module, num_samples=4, output_dir=str(tmp_path / "memory"), ckpt_path=ckpt_path, weights_only=True)
    with torch.no_grad():
        module.denoiser.network.conv.weight.add_(1)
    with pytest.raises(ValueError, match="not of the same weights"):
        run.predict(module, num_samples=4, output_dir=str(tmp_path / "memory"))
