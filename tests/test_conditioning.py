"""Labels, and guidance without a classifier."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PARAMETRIZATIONS
from helpers import digits, tiny_module, trainer
from PIL import Image
from test_cli import CONFIGS, DIGITS, SMALL, error_of

from lit_ddpm import (
    DDPM,
    AncestralSampler,
    DDIMSampler,
    Denoiser,
    GuidedDenoiser,
    LinearSchedule,
    UNet,
    VParametrization,
    variational_bound,
)
from lit_ddpm.__main__ import main
from lit_ddpm.callbacks import SampleGrid

CONDITIONAL = [*DIGITS, "--config", str(CONFIGS / "digits_conditional.yaml")]


class Labelled(torch.nn.Module):
    """A network whose output tells its label, and which is affine in it."""

    def __init__(self, num_classes=3, channels=1):
        super().__init__()
        self.num_classes = num_classes
        self.embedding = torch.nn.Embedding(num_classes + 1, channels)
        self.calls = 0
        self.seen = []

    def forward(self, x_t, t, label=None):
        self.calls += 1
        self.seen.append(label)
        label = torch.full_like(t, self.num_classes) if label is None else label
        return 0.1 * x_t + self.embedding(label)[:, :, None, None]


def denoiser(parametrization=None, **kwargs):
    torch.manual_seed(0)
    return Denoiser(Labelled(), LinearSchedule(50), parametrization or VParametrization(), **kwargs)


def conditional_module(kind=DDPM, **kwargs):
    return tiny_module(kind, **{"network": Labelled(10), **kwargs})


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
def test_guidance_of_the_estimate_is_guidance_of_the_output(parametrization):
    plain = denoiser(parametrization).double()
    x_t, t, label = (
        torch.randn(4, 1, 5, 5, dtype=torch.float64),
        torch.tensor([2, 9, 30, 50]),
        torch.tensor([0, 1, 2, 2]),
    )
    with torch.no_grad():
        with_label, without = plain.network(x_t, t, label), plain.network(x_t, t)
        output = without + 3 * (with_label - without)
        expected = parametrization.x0_hat(plain.schedule, output, x_t, t)
        found = GuidedDenoiser(plain, 3)(x_t, t, label=label)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_scale_of_one_is_the_conditional_model_and_zero_the_unconditional_one():
    plain = denoiser()
    x_t, t, label = torch.randn(4, 1, 5, 5), torch.tensor([2, 9, 30, 50]), torch.tensor([0, 1, 2, 2])
    with torch.no_grad():
        torch.testing.assert_close(GuidedDenoiser(plain, 1)(x_t, t, label=label), plain(x_t, t, label=label))
        torch.testing.assert_close(GuidedDenoiser(plain, 0)(x_t, t, label=label), plain(x_t, t))


def test_guidance_clips_what_is_guided_and_makes_one_call_of_both():
    plain = denoiser(clip=True)
    plain.network.embedding.weight.data *= 50
    x_t, label = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    with torch.no_grad():
        plain.network.calls = 0
        x0_hat = GuidedDenoiser(plain, 5)(x_t, 20, label=label)
        assert plain.network.calls == 1
        assert plain.network.seen[-1].tolist() == [0, 1, 2, 3, 3, 3]
        assert float(x0_hat.abs().max()) == 1
        p = GuidedDenoiser(plain, 5).p_posterior(x_t, 20, 10, label=label)
        torch.testing.assert_close(p.mean, plain.p_given_x0_hat(x_t, x0_hat, 20, 10).mean)


def test_a_guided_denoiser_shares_the_network():
    plain = denoiser()
    assert GuidedDenoiser(plain, 2).network is plain.network


def test_labels_reach_the_network_in_training_and_in_the_bound():
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


def test_labels_are_dropped_in_training_alone_and_at_the_given_rate():
    module = conditional_module(label_dropout=0.3)
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
        module = conditional_module(label_dropout=0.5)
        trainer(max_epochs=2, limit_val_batches=0).fit(module, digits(batch_size=256))
        runs.append(torch.cat(module.denoiser.network.seen))
    assert torch.equal(*runs)


def test_image_number_i_is_of_class_i_modulo_the_classes():
    module = conditional_module(sampler=AncestralSampler(3, chunk_size=8))
    module.image_shape = (1, 8, 8)
    twelve = module.sample(12)
    assert torch.equal(module.sample(5, first_index=6), twelve[6:11])
    assert torch.equal(module.sample(12, label=torch.arange(12) % 10), twelve)
    assert not torch.equal(module.sample(12, label=torch.zeros(12, dtype=torch.int64)), twelve)
    with pytest.raises(ValueError, match=r"label = \[0, 10\] must be 0 to 9"):
        module.sample(2, label=torch.tensor([0, 10]))


def test_guidance_changes_samples_and_not_the_bound():
    samples, bounds = [], []
    network = Labelled(10)
    for guidance in (1.0, 4.0):
        module = conditional_module(network=network, guidance=guidance, sampler=DDIMSampler(5, chunk_size=8))
        run = trainer()
        (found,) = run.validate(module, digits(), verbose=False)
        bounds.append(found["val/bpd"])
        samples.append(module.sample(4))
    assert bounds[0] == bounds[1]
    assert not torch.equal(*samples)


def test_labels_that_do_not_fit_are_refused(capsys):
    with pytest.raises(
        ValueError, match=r"guidance = 2 needs a network with labels: num_classes of TinyNetwork is None"
    ):
        tiny_module(guidance=2)
    with pytest.raises(ValueError, match=r"label_dropout = 0\.1 needs a network with labels"):
        tiny_module(label_dropout=0.1)
    with pytest.raises(ValueError, match=r"label_dropout = 1\.5 must be in \[0, 1\)"):
        conditional_module(label_dropout=1.5)
    with pytest.raises(
        ValueError, match=r"num_classes = 7 of Labelled does not fit DigitsDataModule, which has 10 classes"
    ):
        trainer().fit(tiny_module(network=Labelled(7)), digits())
    message = error_of(capsys, [*DIGITS, "--model.guidance=3"])
    assert "guidance = 3.0 needs a network with labels: num_classes of UNet is None" in message
    message = error_of(capsys, [*CONDITIONAL, "--model.network.num_classes=4"])
    assert "num_classes = 4 of UNet does not fit DigitsDataModule, which has 10 classes" in message


def test_the_shipped_conditional_digits_draw_a_column_for_each_class():
    settings = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=0"]
    main([*CONDITIONAL, *SMALL, *settings])
    run = Path("runs/digits_conditional")
    (grid,) = (run / "samples").glob("step*")
    picture = Image.open(grid)
    assert picture.size[0] == 10 * (32 + 2) + 2
    assert "guidance 2" in picture.text["Description"]
    main(["predict", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--num_samples=12"])
    archive = np.load(run / "predict" / "samples.npz")
    assert archive["arr_1"].tolist() == [*range(10), 0, 1]
    assert json.loads((run / "predict" / "samples.json").read_text())["guidance"] == 2.0


def test_a_grid_without_labels_has_eight_columns():
    assert SampleGrid().columns is None
    module = tiny_module()
    assert module.num_classes is None
    assert UNet(num_classes=4).num_classes == 4
