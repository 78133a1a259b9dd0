"""Conditions that are images: in training, in the bound, in samples and in pictures."""

import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from helpers import CONFIGS, DIGITS_CONFIG, SMALL, Brightness, FewDigits, digits, error_of, tiny_module, trainer
from PIL import Image

from lit_ddpm import DDPM, AncestralSampler, Condition, LowResolution, UNet, variational_bound
from lit_ddpm.__main__ import main
from lit_ddpm.callbacks import EMA, SampleGrid, SampleMetrics
from lit_ddpm.data import ImageTensors
from lit_ddpm.likelihood.report import Report
from lit_ddpm.training.sampling import HeldOut

SUPERRES = ["--config", DIGITS_CONFIG, "--config", str(CONFIGS / "digits_superres.yaml")]


def network(**kwargs):
    return UNet(width=8, multipliers=[1], num_blocks=1, attention_levels=[], cond_channels=1, **kwargs)


def superres(kind=DDPM, **kwargs) -> DDPM:
    settings = {"network": network(), "condition": LowResolution(2), "sampler": AncestralSampler(4, chunk_size=8)}
    return tiny_module(kind, **{**settings, **kwargs})


def trained(**kwargs) -> DDPM:
    """A model after some steps at a high learning rate, so that conditions matter."""
    module = superres(optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2), **kwargs)
    trainer(max_epochs=2, limit_val_batches=0).fit(module, digits(batch_size=128))
    return module


def test_the_bound_is_that_of_the_conditional_model():
    module = trained()
    run = trainer(limit_test_batches=1)
    run.test(module, FewDigits(eval_batch_size=20), verbose=False)
    report = module.evaluation.last_report
    assert report.conditioned_on == ("cond",)
    assert "the bound of a conditional model: x_0 given cond" in str(report)
    assert Report.load(Path("bound.json")).conditioned_on == ("cond",)
    x_0 = FewDigits().splits()["test"].images[:8].float() / 8 - 1
    low = LowResolution(2)(x_0)
    right, wrong = (variational_bound(module.denoiser, x_0, module.decoder, cond=c).total for c in (low, low.flip(0)))
    assert bool((right < wrong).all())


def test_samples_follow_the_conditions_that_are_given():
    module = trained()
    low = LowResolution(2)(digits().splits()["test"].images[:5].float() / 8 - 1)
    samples = module.sample(5, cond=low)
    errors = [(LowResolution(2)(samples) - other).abs().mean() for other in (low, low.flip(0))]
    assert errors[0] < errors[1]
    assert torch.equal(module.sample(3, cond=low[2:], first_index=2), samples[2:])
    torch.testing.assert_close(module.sample(5, cond=low[:1]), module.sample(5, cond=low[[0] * 5]))
    with pytest.raises(ValueError, match=r"cond is missing: a network with cond_channels = 1 draws 5 images under"):
        module.sample(5)
    with pytest.raises(ValueError, match=r"cond is \[4, 1, 4, 4\]: .* conditions \[5, 1, ...\], or \[1, 1, ...\]"):
        module.sample(5, cond=low[:4])


class Keep(lightning.Callback):
    """The held-out images of a command, which the module forgets at its end."""

    def on_fit_end(self, trainer, module):
        self.held_out = module.held_out

    on_test_end = on_fit_end


def test_conditions_are_those_of_the_held_out_split():
    module, keep = superres(), Keep()
    data = FewDigits(eval_batch_size=7, batch_size=256)
    run = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1, callbacks=[keep])
    for start, split in (
        (lambda: run.fit(module, data), "val"),
        (lambda: run.test(module, data, verbose=False), "test"),
    ):
        start()
        assert module.held_out is None
        x_0, cond = keep.held_out(torch.arange(45, 55))  # of 50: the last five and the first five
        rows = torch.tensor([45, 46, 47, 48, 49, 0, 1, 2, 3, 4])
        torch.testing.assert_close(x_0, data.splits()[split].images[rows].float() / 8 - 1)
        torch.testing.assert_close(cond["cond"], LowResolution(2)(x_0))
        assert keep.held_out.name == f"{split} split of FewDigits"


def test_held_out_images_without_a_label():
    """They are drawn without one, under the condition of the image."""

    class Unlabelled(FewDigits):
        def splits(self):
            return {n: ImageTensors(s.images, torch.full_like(s.labels, -1)) for n, s in super().splits().items()}

    module = superres(network=network(num_classes=10))
    before = torch.random.get_rng_state()
    run = trainer(callbacks=[SampleGrid(4)], max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    run.fit(module, Unlabelled(batch_size=64))
    torch.random.set_rng_state(before)
    module.held_out = None
    data = Unlabelled()
    data.setup("fit")
    held_out = HeldOut(module, data, "val")
    assert held_out(torch.arange(4))[1]["label"].tolist() == [10] * 4
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is not used


def test_a_subclass_chooses_conditions_from_those_held_out():
    class Brighter(DDPM):
        def sample_cond(self, index):
            return {"cond": super().sample_cond(index)["cond"] + 0.5}

    seen = []
    module = superres(Brighter)
    module.denoiser.network.register_forward_pre_hook(
        lambda net, args, kwargs: seen.append(kwargs["cond"]), with_kwargs=True
    )
    keep = Keep()
    callbacks = [SampleGrid(4, num_trajectories=0), keep]
    trainer(callbacks=callbacks, max_epochs=1, limit_train_batches=1).fit(module, digits())
    expected = keep.held_out(torch.arange(4))[1]["cond"] + 0.5
    torch.testing.assert_close(seen[-1][:4], expected)


@pytest.mark.parametrize("settings", [{"devices": 2, "strategy": "ddp_fork"}, {"eval_batch_size": 7}])
def test_pictures_do_not_depend_on_ranks_or_batches(settings):
    grids = []
    for number, changed in enumerate(({}, settings)):
        batch = changed.pop("eval_batch_size", 180) if number else 180
        run = trainer(
            callbacks=[EMA(0.9), SampleGrid(12)],
            max_epochs=1,
            default_root_dir=str(number),
            limit_val_batches=1,
            limit_train_batches=1,
            **changed,
        )
        module = superres(optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        run.fit(module, digits(batch_size=64, eval_batch_size=batch))
        grids.append({path.name: path.read_bytes() for path in (Path(str(number)) / "samples").iterdir()})
    assert len(grids[0]) == 2
    assert grids[0] == grids[1]


def test_condition_sample_and_truth_are_side_by_side():
    trainer(callbacks=[SampleGrid(4)], max_epochs=1, limit_train_batches=1).fit(superres(), digits(batch_size=64))
    picture = Image.open("samples/step_0000001.png")
    assert picture.text["Description"].endswith("seed 0, condition, sample and truth side by side")
    cells = np.asarray(picture)[2:-2, 2:-2, 0]
    assert np.asarray(picture).shape == (32 + 4, 12 * (32 + 2) + 2, 3)
    truth = digits().splits()["val"].images[0, 0].float() * (255 / 16)
    shown = cells[::4, 2 * 34 : 2 * 34 + 32 : 4]
    torch.testing.assert_close(torch.tensor(shown).float(), truth.round())
    low = cells[:32, :32].reshape(4, 8, 4, 8)
    assert bool((low == low[:, :1, :, :1]).all())  # blocks of one value


def test_the_protocol_states_the_conditions():
    metrics = SampleMetrics(Brightness(), num_samples=8, num_val_samples=8, kid_subsets=2)
    trainer(callbacks=[metrics], max_epochs=1, limit_train_batches=1, limit_val_batches=1).fit(superres(), digits())
    record = json.loads(Path("sample_metrics.jsonl").read_text().splitlines()[0])
    assert record["protocol"]["conditions"] == "val split of DigitsDataModule"


def test_a_model_without_held_out_images_says_what_it_needs():
    class Own(lightning.LightningDataModule):
        image_shape = (1, 8, 8)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.rand(16, 1, 8, 8).round() * 2 - 1, batch_size=8)

    with pytest.raises(ValueError, match="cond is missing: a network with cond_channels = 1"):
        trainer(callbacks=[SampleGrid(2)], max_epochs=1).fit(superres(decoder=None), Own())


class Grey(Condition):
    """Conditions of another number of channels."""

    def __call__(self, x_0):
        return x_0.repeat(1, 2, 1, 1)


def test_conditions_that_do_not_fit_are_refused(capsys):
    with pytest.raises(ValueError, match=r"cond_channels = 1 of UNet does not fit Grey, which has conditions of 2 cha"):
        trainer().fit(superres(condition=Grey()), digits())
    with pytest.raises(ValueError, match=r"cond_channels = 1 of UNet does not fit DigitsDataModule, which has no cond"):
        trainer().fit(superres(condition=None), digits())
    message = error_of(capsys, ["fit", "--config", DIGITS_CONFIG, "--model.condition=LowResolution"])
    assert "cond_channels = None of UNet does not fit LowResolution, which has conditions of 1 channels" in message


def test_the_commands_draw_under_conditions_of_the_test_split():
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    main(["fit", *SUPERRES, *SMALL, *few])
    checkpoint = "runs/digits_superres/checkpoints/last.ckpt"
    drawn = []
    for directory, batch in (("a", 50), ("b", 20)):
        predict = ["predict", "--ckpt_path", checkpoint, f"--output_dir={directory}", "--num_samples=6"]
        main([*predict, f"--data.eval_batch_size={batch}"])
        drawn.append(np.load(f"{directory}/samples.npz")["arr_0"])
    assert np.array_equal(*drawn)
    origin = json.loads(Path("a/samples.json").read_text())
    assert origin["conditions"] == "test split of DigitsDataModule"
    loaded = DDPM.load_from_checkpoint(checkpoint)
    low = LowResolution(2)(digits().splits()["test"].images[:6].float() / 8 - 1)
    levels = ((loaded.sample(6, cond=low).clamp(-1, 1) + 1) * 8).round() * (255 / 16)
    assert np.array_equal(drawn[0][..., 0], levels[:, 0].round().byte().numpy())
