"""Labels in training, in the bound and in samples."""

import pytest
import torch
from helpers import FIT_CONDITIONAL_DIGITS, FIT_DIGITS, LabelledNetwork, digits, error_of, tiny_module, trainer

from lit_ddpm import DDPM, AncestralSampler, DDIMSampler, Guidance, variational_bound
from lit_ddpm.data.spec import DataSpec


def conditional_module(kind=DDPM, **kwargs):
    return tiny_module(kind, **{"network": LabelledNetwork(10), **kwargs})


def test_labels_reach_the_network():
    module = conditional_module()
    data = digits(batch_size=64)
    trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1).fit(module, data)
    seen = [label for label in module.denoiser.network.seen if label is not None]
    assert set(seen[0].tolist()) <= set(range(10))
    assert len(seen) == len(module.denoiser.network.seen)
    splits = data.splits()["val"]
    x_0 = splits.images[:5].float() / 8 - 1
    right = variational_bound(module.denoiser, x_0, module.decoder, label=splits.labels[:5])
    wrong = variational_bound(module.denoiser, x_0, module.decoder, label=(splits.labels[:5] + 1) % 10)
    assert not torch.equal(right.total, wrong.total)


def test_labels_are_dropped_in_training_only():
    module = conditional_module(guidance=Guidance(dropout=0.3))
    trainer(max_epochs=4, limit_val_batches=1).fit(module, digits(batch_size=256))
    network = module.denoiser.network
    training = torch.cat([label for label in network.seen if len(label) == 256])
    validation = torch.cat([label for label in network.seen if len(label) != 256])
    share = float((training == 10).float().mean())
    assert share == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / len(training)) ** 0.5)
    assert not bool((validation == 10).any())


def test_dropped_labels_are_a_function_of_the_step():
    runs = []
    for _ in range(2):
        module = conditional_module(guidance=Guidance(dropout=0.5))
        trainer(max_epochs=2, limit_val_batches=0).fit(module, digits(batch_size=256))
        runs.append(torch.cat(module.denoiser.network.seen))
    assert torch.equal(*runs)


def test_image_i_has_class_i_modulo_the_classes():
    module = conditional_module(sampler=AncestralSampler(3, chunk_size=8))
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    twelve = module.sample(12)
    assert torch.equal(module.sample(5, first_index=6), twelve[6:11])
    assert torch.equal(module.sample(12, label=torch.arange(12) % 10), twelve)
    assert not torch.equal(module.sample(12, label=torch.zeros(12, dtype=torch.int64)), twelve)
    with pytest.raises(ValueError, match=r"label = \[0, 11\] must be 0 to 9"):
        module.sample(2, label=torch.tensor([0, 11]))


def test_guidance_changes_samples_and_not_the_bound():
    samples, bounds = [], []
    network = LabelledNetwork(10)
    for guidance in (1.0, 4.0):
        module = conditional_module(network=network, guidance=Guidance(guidance), sampler=DDIMSampler(5, chunk_size=8))
        run = trainer()
        (found,) = run.validate(module, digits(), verbose=False)
        bounds.append(found["val/bpd"])
        samples.append(module.sample(4))
    assert bounds[0] == bounds[1]
    assert not torch.equal(*samples)


def test_labels_that_do_not_fit_are_refused(capsys):
    with pytest.raises(
        ValueError, match=r"scale = 2 of Guidance needs a class-conditional network: num_classes of TinyNetwork is None"
    ):
        tiny_module(guidance=Guidance(2))
    with pytest.raises(ValueError, match=r"dropout = 0\.1 of Guidance needs a class-conditional network"):
        tiny_module(guidance=Guidance(dropout=0.1))
    with pytest.raises(ValueError, match=r"dropout = 1\.5 of Guidance must be in \[0, 1\)"):
        conditional_module(guidance=Guidance(dropout=1.5))
    with pytest.raises(
        ValueError, match=r"num_classes = 7 of LabelledNetwork does not fit DigitsDataModule, which has 10 classes"
    ):
        trainer().fit(tiny_module(network=LabelledNetwork(7)), digits())
    message = error_of(capsys, [*FIT_DIGITS, "--model.guidance.scale=3"])
    assert "scale = 3.0 of Guidance needs a class-conditional network: num_classes of UNet is None" in message
    message = error_of(capsys, [*FIT_CONDITIONAL_DIGITS, "--model.network.num_classes=4"])
    assert "num_classes = 4 of UNet does not fit DigitsDataModule, which has 10 classes" in message
