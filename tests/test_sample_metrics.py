import json
import logging
import math
from pathlib import Path

import pytest
import torch
from helpers import digits, tiny_module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_ddpm import DDPM, AncestralSampler
from lit_ddpm.callbacks import EMA, SampleMetrics
from lit_ddpm.data import DigitsDataModule, to_float, to_uint8
from lit_ddpm.metrics.digits import DigitsFeatures
from lit_ddpm.training.distributed import gather_in_turn

KEYS = {"sample/fid_digits", "sample/kid_digits", "sample/kid_std_digits", "sample/is_digits"}


def sample_metrics(extractor=None, **kwargs):
    defaults = {"num_samples": 70, "num_val_samples": 70, "kid_subsets": 3, "kid_subset_size": 20, "is_splits": 1}
    return SampleMetrics(extractor or DigitsFeatures(), **{**defaults, **kwargs})


def fit(callback=None, module=None, data=None, ema=True, **kwargs):
    callbacks = [EMA(0.9)] * ema + [callback or sample_metrics()] + kwargs.pop("more", [])
    run = trainer(**{"callbacks": callbacks, "limit_val_batches": 1, "max_epochs": 1, **kwargs})
    run.fit(module or tiny_module(), data or digits())
    return run


def records(directory="."):
    return [json.loads(line) for line in (Path(directory) / "sample_metrics.jsonl").read_text().splitlines()]


class Counting(DigitsFeatures):
    """Counts the images it is given."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


# --- when, and what is said


def test_a_fit_evaluates_in_its_first_validation_and_every_n_epochs():
    fit(sample_metrics(every_n_epochs=3), max_epochs=4, num_sanity_val_steps=1, logger=CSVLogger(".", "", ""))
    assert [record["global_step"] for record in records()] == [4, 12]
    lines = Path("metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("sample/fid_digits")
    assert sum(bool(line.split(",")[column]) for line in lines[1:]) == 2


def test_test_and_validate_evaluate_once_and_print_the_protocol(capsys):
    module = tiny_module()
    run = trainer(callbacks=[sample_metrics(num_samples=80)])
    run.fit_loop.max_epochs = 0
    module.averaged = True
    run.test(module, digits(), verbose=False)
    assert set(run.callback_metrics) >= KEYS
    printed = capsys.readouterr().out
    for word in (
        "fid_digits",
        "kid_std_digits",
        "is_digits",
        "80 generated and 1,257 real",
        "training split of Digits",
    ):
        assert word in printed
    run.validate(module, digits(), verbose=False)
    assert set(run.callback_metrics) >= KEYS
    assert [(r["command"], r["protocol"]["num_generated"]) for r in records()] == [("test", 80), ("validate", 70)]


def test_every_result_has_its_protocol(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(sample_metrics(val_sampler=AncestralSampler(5, chunk_size=32), seed=4), logger=CSVLogger(".", "", ""))
    (record,) = records()
    extractor = record["protocol"].pop("extractor")
    assert extractor.startswith("digits (")
    assert record["protocol"] == {
        "resize": "none",
        "num_generated": 70,
        "num_real": 1257,
        "real": "training split of DigitsDataModule",
        "sampler": "AncestralSampler",
        "num_steps": 5,
        "guidance": 1.0,
        "weights": "averaged",
        "precision": "32-true",
        "seed": 4,
        "kid_subsets": 3,
        "kid_subset_size": 20,
        "is_splits": 1,
    }
    assert {f"sample/{name}_digits" for name in record["metrics"]} == KEYS
    assert (
        "draws 70 images in the first validation and every 1 epochs: 3 chunks of 32, 5 network calls an image, 480"
        in (caplog.text)
    )
    assert caplog.text.count("AncestralSampler with 5 steps, averaged weights") == 2  # before, and with the figures
    assert extractor in Path("hparams.yaml").read_text()


def test_the_protocol_says_which_weights():
    module = tiny_module()
    run = fit(module=module, ema=False)
    assert records()[-1]["protocol"]["weights"] == "raw"
    run.test(module, digits(), verbose=False)
    assert records()[-1]["protocol"]["weights"] == "raw"

    run = fit(module=module, enable_checkpointing=True)
    assert records()[-1]["protocol"]["weights"] == "averaged"
    run.test(module, digits(), verbose=False)  # which the fit left with the average
    assert records()[-1]["protocol"]["weights"] == "averaged"
    checkpoint = run.checkpoint_callback.best_model_path
    run = trainer(callbacks=[sample_metrics()])
    run.test(tiny_module(), digits(), ckpt_path=checkpoint, verbose=False)
    assert records()[-1]["protocol"]["weights"] == "averaged"
    assert records()[-1]["global_step"] == 4
    assert DDPM.load_from_checkpoint(checkpoint, network=module.denoiser.network).averaged

    module = tiny_module()
    run = trainer(callbacks=[sample_metrics()], max_epochs=2, limit_val_batches=1)
    run.fit(module, digits(), ckpt_path=checkpoint)
    assert records()[-1]["protocol"]["weights"] == "raw"
    assert not module.averaged


def test_the_weights_measured_are_the_averaged_ones():
    """A fit that ends with a jump of the raw weights: the figures are those of the average alone."""
    module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    run = fit(module=module, enable_checkpointing=True)
    of_fit = records()[-1]["metrics"]
    checkpoint = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    figures = []
    for weights in ("state_dict", "current_model_state"):
        module.load_state_dict(checkpoint[weights])
        trainer(callbacks=[sample_metrics()]).test(module, digits(), verbose=False)
        figures.append(records()[-1]["metrics"])
    assert figures[0] == of_fit
    assert figures[1] != of_fit


def test_a_checkpoint_can_go_by_the_fid_in_every_epoch():
    best = ModelCheckpoint(".", "best", monitor="sample/fid_digits", mode="min", every_n_epochs=1)
    fit(sample_metrics(every_n_epochs=3), max_epochs=4, more=[best], enable_checkpointing=True)
    assert float(best.best_model_score) == pytest.approx(min(r["metrics"]["fid"] for r in records()))


# --- the same whatever the processes, and no influence


@pytest.mark.parametrize("devices", [2, 3])
def test_figures_are_the_same_on_any_number_of_processes(devices):
    found = []
    for count in (1, devices):
        run = trainer(
            callbacks=[sample_metrics(num_samples=37, cache_dir=f"cache_{count}")],
            devices=count,
            strategy="auto" if count == 1 else "ddp_fork",
            default_root_dir=str(count),
            limit_test_batches=1,
        )
        Path(str(count)).mkdir()
        run.test(tiny_module(), digits(), verbose=False)
        (record,) = records(str(count))
        found.append(record["metrics"])
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-6), name
    assert math.isfinite(found[0]["fid"])


def test_pieces_come_back_in_their_order(monkeypatch):
    class OfThree:
        world_size = 3

    shares = [["a", "d", "g"], ["b", "e"], ["c", "f"]]

    def all_gather_object(everyones, mine):
        everyones[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    assert "".join(gather_in_turn(OfThree(), shares[0])) == "abcdefg"


def test_training_is_the_same_with_and_without():
    losses, weights = [], []

    class Recorder(CSVLogger):
        def log_metrics(self, metrics, step):
            if "train/loss" in metrics:
                losses[-1].append((step, metrics["train/loss"]))

    for callbacks in ([], [sample_metrics()]):
        losses.append([])
        module = tiny_module()
        run = trainer(callbacks=callbacks, max_epochs=3, limit_val_batches=1, logger=Recorder(".", "", ""))
        run.fit(module, digits())
        weights.append(module.state_dict())
    assert len(losses[0]) == 12
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_neither_module_nor_checkpoint_holds_the_extractor():
    plain = {key: value.shape for key, value in tiny_module().state_dict().items()}
    module = tiny_module()
    run = fit(module=module, ema=False, enable_checkpointing=True)
    checkpoint = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    for state in (module.state_dict(), checkpoint["state_dict"]):
        assert {key: value.shape for key, value in state.items()} == plain
    assert not any("SampleMetrics" in key for key in checkpoint["callbacks"])


# --- the real images


def test_real_statistics_are_measured_once():
    for expected in (2 + 1257 + 70, 2 + 70, 2 + 70):  # two to probe
        callback = sample_metrics(Counting())
        fit(callback)
        assert callback.extractor.seen == expected
    assert len({json.dumps(record["metrics"]) for record in records()}) == 1


class Inverted(DDPM):
    def unpack_batch(self, batch):
        return -batch[0], {}


def test_statistics_of_other_images_are_others():
    fit(data=digits())
    fit(data=digits(split_seed=1))
    fit(module=tiny_module(Inverted))
    assert len(list((Path(torch.hub.get_dir()) / "lit_ddpm").iterdir())) == 3


def test_a_stale_or_foreign_file_is_refused_at_the_start():
    for seed in (0, 1):
        fit(sample_metrics(cache_dir=f"cache_{seed}"), data=digits(split_seed=seed))
    (mine,), (other,) = (list(Path(f"cache_{seed}").iterdir()) for seed in (0, 1))
    mine.write_bytes(other.read_bytes())
    module = tiny_module()
    with pytest.raises(ValueError, match=r"not of this data and extractor: it has another data, first_images; remove"):
        fit(sample_metrics(cache_dir="cache_0"), module=module)
    assert module.trainer.global_step == 0


def test_a_place_that_cannot_be_written_costs_the_cache_alone():
    Path("file").write_text("")
    with pytest.warns(UserWarning, match="statistics of real images were not kept: file"):
        fit(sample_metrics(cache_dir="file"))
    assert len(records()) == 1


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

    fit(sample_metrics(Keeping(), num_val_samples=8), data=Flipping(batch_size=256))
    real = torch.cat(seen[1:])[:1257]  # after those of the probe
    assert torch.equal(real, to_uint8(to_float(digits().splits()["train"].images, 17), 17))


def test_data_without_reference_images_is_refused():
    class Foreign(DigitsDataModule):
        @property
        def reference_dataloader(self):
            raise AttributeError

    with pytest.raises(ValueError, match=r"give the data module, Foreign, a method reference_dataloader\(\)"):
        fit(data=Foreign())
    with pytest.raises(ValueError, match="from a DDPM, not from a BoringModel"):
        trainer(callbacks=sample_metrics()).fit(BoringModel())


# --- too few, broken, unfit


def test_fewer_samples_than_features_are_said_with_the_number_that_would_do():
    with pytest.warns(
        UserWarning, match=r"FID of 40 images in 64 features is mostly bias: more than 64 gen.*num_samples"
    ):
        fit(sample_metrics(num_val_samples=40))


def test_the_kid_is_sized_to_what_there_is():
    fit(sample_metrics(num_val_samples=70, kid_subset_size=1000))
    (record,) = records()
    assert record["protocol"]["kid_subset_size"] == 70
    assert math.isfinite(record["metrics"]["kid"])


class Diverged(AncestralSampler):
    def step(self, denoiser, x_t, t, s, generator, **cond):
        x = super().step(denoiser, x_t, t, s, generator, **cond)
        x[3] = math.inf if s == 0 else x[3]
        return x


def test_images_that_are_not_finite_do_not_end_the_training():
    with pytest.warns(UserWarning, match="1 of 64 generated images are not finite"):
        run = fit(sample_metrics(val_sampler=Diverged(4, chunk_size=64), num_val_samples=64), max_epochs=2)
    assert run.global_step == 8
    assert math.isnan(records()[0]["metrics"]["fid"])


class Wrong(nn.Module):
    def forward(self, images):
        return images.float()


class ForColour(nn.Module):
    def forward(self, images):
        if images.shape[1] != 3:
            raise ValueError("ForColour takes three channels.")


def test_an_extractor_that_does_not_fit_is_an_error_before_training():
    for extractor, message in ((Wrong(), r"Wrong returned \[2, 1, 8, 8\]"), (ForColour(), "takes three channels")):
        module = tiny_module()
        with pytest.raises(ValueError, match=message):
            fit(sample_metrics(extractor), module=module)
        assert module.trainer.global_step == 0


def test_bad_settings_are_refused_by_name():
    for name, least in (("num_samples", 2), ("num_val_samples", 2), ("every_n_epochs", 1), ("kid_subsets", 1)):
        with pytest.raises(ValueError, match=f"{name} = 0 of SampleMetrics must be at least {least}"):
            SampleMetrics(**{name: 0})
    with pytest.raises(ValueError, match=r"num_steps = 21 .*at most the schedule's 20"):
        fit(sample_metrics(val_sampler=AncestralSampler(21)))


def test_a_fast_dev_run_is_fast():
    callback = sample_metrics(Counting(), num_val_samples=5000, val_sampler=AncestralSampler(2, chunk_size=16))
    fit(callback, fast_dev_run=True)
    assert callback.extractor.seen == 2 + 180 + 4
    assert not list(Path().rglob("*.safetensors"))
    assert not Path("sample_metrics.jsonl").exists()
