import logging
import math
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
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_ddpm import DDPM, AncestralSampler
from lit_ddpm.callbacks import SampleMetrics

KEYS = {"sample/fid_digits", "sample/kid_digits", "sample/kid_std_digits", "sample/is_digits"}


def test_a_fit_evaluates_first_and_every_n_epochs():
    fit_with_sample_metrics(
        small_sample_metrics(every_n_epochs=3), max_epochs=4, num_sanity_val_steps=1, logger=CSVLogger(".", "", "")
    )
    assert [record["global_step"] for record in evaluations()] == [4, 12]
    lines = Path("metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("sample/fid_digits")
    assert sum(bool(line.split(",")[column]) for line in lines[1:]) == 2


def test_test_and_validate_print_the_protocol(capsys):
    module = tiny_module()
    run = trainer(callbacks=[small_sample_metrics(num_samples=80)])
    run.fit_loop.max_epochs = 0
    module.on_load_checkpoint({"current_model_state": {}})  # of a fit with averaging
    run.test(module, digits(), verbose=False)
    assert set(run.callback_metrics) >= KEYS | {"sample/fid_se_digits", "sample/fid_infinite_digits"}
    printed = capsys.readouterr().out
    for word in (
        "fid_digits",
        "fid_se_digits",
        "kid_std_digits",
        "is_digits",
        "80 generated and 1,257 real",
        "training split of Digits",
    ):
        assert word in printed
    run.validate(module, digits(), verbose=False)
    assert set(run.callback_metrics) >= KEYS
    assert [(r["command"], r["protocol"]["num_generated"]) for r in evaluations()] == [("test", 80), ("validate", 70)]


def test_every_result_has_its_protocol(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit_with_sample_metrics(
            small_sample_metrics(val_sampler=AncestralSampler(5, chunk_size=32), seed=4), logger=CSVLogger(".", "", "")
        )
    (record,) = evaluations()
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
        "conditions": "none",
        "weights": "averaged",
        "precision": "32-true",
        "seed": 4,
        "kid_subsets": 3,
        "kid_subset_size": 20,
        "is_splits": 1,
    }
    assert {f"sample/{name}_digits" for name in record["metrics"]} == KEYS
    assert (
        "draws 70 images in the first validation and every 1 epochs: 3 chunks of 32, 5 network calls for each image, "
        "480" in (caplog.text)
    )
    assert (
        caplog.text.count("AncestralSampler with 5 steps, averaged weights") == 2
    )  # before the evaluation, and with the metrics
    assert extractor in Path("hparams.yaml").read_text()


def test_the_protocol_names_the_weights():
    module = tiny_module()
    run = fit_with_sample_metrics(module=module, ema=False)
    assert evaluations()[-1]["protocol"]["weights"] == "raw"
    run.test(module, digits(), verbose=False)
    assert evaluations()[-1]["protocol"]["weights"] == "raw"

    run = fit_with_sample_metrics(module=module, enable_checkpointing=True)
    assert evaluations()[-1]["protocol"]["weights"] == "averaged"
    run.test(module, digits(), verbose=False)  # the fit leaves the averaged weights
    assert evaluations()[-1]["protocol"]["weights"] == "averaged"
    checkpoint = run.checkpoint_callback.best_model_path
    run = trainer(callbacks=[small_sample_metrics()])
    run.test(tiny_module(), digits(), ckpt_path=checkpoint, verbose=False)
    assert evaluations()[-1]["protocol"]["weights"] == "averaged"
    assert evaluations()[-1]["global_step"] == 4
    assert DDPM.load_from_checkpoint(checkpoint, network=module.denoiser.network).averaged

    module = tiny_module()
    run = trainer(callbacks=[small_sample_metrics()], max_epochs=2, limit_val_batches=1)
    run.fit(module, digits(), ckpt_path=checkpoint)
    assert evaluations()[-1]["protocol"]["weights"] == "raw"
    assert not module.averaged


def test_the_averaged_weights_are_measured():
    """Raw and averaged weights differ at the end of the fit; the metrics are those of the average."""
    module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    run = fit_with_sample_metrics(module=module, enable_checkpointing=True)
    logged = evaluations()[-1]["metrics"]
    checkpoint = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    figures = []
    for weights in ("state_dict", "current_model_state"):
        module.load_state_dict(checkpoint[weights])
        trainer(callbacks=[small_sample_metrics()]).test(module, digits(), verbose=False)
        tested = evaluations()[-1]["metrics"]
        figures.append({name: tested[name] for name in logged})  # a test adds the error of the FID
    assert figures[0] == logged
    assert figures[1] != logged


def test_a_checkpoint_can_monitor_the_fid_every_epoch():
    best = ModelCheckpoint(".", "best", monitor="sample/fid_digits", mode="min", every_n_epochs=1)
    fit_with_sample_metrics(
        small_sample_metrics(every_n_epochs=3), max_epochs=4, more=[best], enable_checkpointing=True
    )
    assert float(best.best_model_score) == pytest.approx(min(r["metrics"]["fid"] for r in evaluations()))


@pytest.mark.parametrize("devices", [2, 3])
def test_metrics_are_the_same_on_any_number_of_processes(devices):
    found = []
    for count in (1, devices):
        run = trainer(
            callbacks=[small_sample_metrics(num_samples=37, cache_dir=f"cache_{count}")],
            devices=count,
            strategy="auto" if count == 1 else "ddp_fork",
            default_root_dir=str(count),
            limit_test_batches=1,
        )
        Path(str(count)).mkdir()
        run.test(tiny_module(), digits(), verbose=False)
        (record,) = evaluations(str(count))
        found.append(record["metrics"])
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-6), name
    assert math.isfinite(found[0]["fid"])


def test_sample_metrics_do_not_change_training():
    losses, weights = [], []

    class LossLogger(CSVLogger):
        def log_metrics(self, metrics, step):
            if "train/loss" in metrics:
                losses[-1].append((step, metrics["train/loss"]))

    for callbacks in ([], [small_sample_metrics()]):
        losses.append([])
        module = tiny_module()
        run = trainer(callbacks=callbacks, max_epochs=3, limit_val_batches=1, logger=LossLogger(".", "", ""))
        run.fit(module, digits())
        weights.append(module.state_dict())
    assert len(losses[0]) == 12
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_neither_module_nor_checkpoint_holds_the_extractor():
    plain = {key: value.shape for key, value in tiny_module().state_dict().items()}
    module = tiny_module()
    run = fit_with_sample_metrics(module=module, ema=False, enable_checkpointing=True)
    checkpoint = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    for state in (module.state_dict(), checkpoint["state_dict"]):
        assert {key: value.shape for key, value in state.items()} == plain
    assert not any("SampleMetrics" in key for key in checkpoint["callbacks"])


def test_fewer_samples_than_features_are_warned_about():
    with pytest.warns(
        UserWarning, match=r"FID of 40 images in 64 features is mostly bias: it needs more than 64 gen.*num_samples"
    ):
        fit_with_sample_metrics(small_sample_metrics(num_val_samples=40))


def test_kid_subsets_are_limited_to_the_samples():
    fit_with_sample_metrics(small_sample_metrics(num_val_samples=70, kid_subset_size=1000))
    (record,) = evaluations()
    assert record["protocol"]["kid_subset_size"] == 70
    assert math.isfinite(record["metrics"]["kid"])


class Diverged(AncestralSampler):
    def step(self, denoiser, x_t, t, s, generator, **cond):
        x = super().step(denoiser, x_t, t, s, generator, **cond)
        x[3] = math.inf if s == 0 else x[3]
        return x


def test_nonfinite_images_do_not_stop_training():
    with pytest.warns(UserWarning, match="1 of 64 generated images are not finite"):
        run = fit_with_sample_metrics(
            small_sample_metrics(val_sampler=Diverged(4, chunk_size=64), num_val_samples=64), max_epochs=2
        )
    assert run.global_step == 8
    assert evaluations()[0]["metrics"]["fid"] is None  # JSON has no NaN


class Wrong(nn.Module):
    def forward(self, images):
        return images.float()


class ForColour(nn.Module):
    def forward(self, images):
        if images.shape[1] != 3:
            raise ValueError("ForColour takes three channels.")


def test_an_unfit_extractor_is_refused_before_training():
    for extractor, message in ((Wrong(), r"Wrong returned \[2, 1, 8, 8\]"), (ForColour(), "takes three channels")):
        module = tiny_module()
        with pytest.raises(ValueError, match=message):
            fit_with_sample_metrics(small_sample_metrics(extractor), module=module)
        assert module.trainer.global_step == 0


def test_bad_settings_are_refused_by_name():
    for name, least in (("num_samples", 2), ("num_val_samples", 2), ("every_n_epochs", 1), ("kid_subsets", 1)):
        with pytest.raises(ValueError, match=f"{name} = 0 of SampleMetrics must be at least {least}"):
            SampleMetrics(**{name: 0})
    with pytest.raises(ValueError, match=r"num_steps = 21 .*at most the schedule's 20"):
        fit_with_sample_metrics(small_sample_metrics(val_sampler=AncestralSampler(21)))


def test_a_fast_dev_run_is_fast():
    callback = small_sample_metrics(
        CountingFeatures(), num_val_samples=5000, val_sampler=AncestralSampler(2, chunk_size=16)
    )
    fit_with_sample_metrics(callback, fast_dev_run=True)
    assert callback.extractor.seen == 2 + 180 + 4
    assert not list(Path().rglob("*.safetensors"))
    assert not Path("sample_metrics.jsonl").exists()
