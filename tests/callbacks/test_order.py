"""The order of callbacks does not matter."""

import json
from pathlib import Path

import lightning
import pytest
from helpers import digits, run_files, small_sample_metrics, tiny_module, trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from lit_ddpm.callbacks import EMA, ELBOProfile, Performance, SampleGrid
from lit_ddpm.training.run_directory import RunLogger


def ema() -> lightning.Callback:
    return EMA(0.9, raw_bound=True)


def ema_of_lightning() -> lightning.Callback:
    return EMAWeightAveraging(decay=0.9)


def fit(directory: Path, averaging, order) -> dict[str, bytes]:
    """Returns the contents of the files of a fit, see `run_files`."""
    callbacks = [
        averaging(),
        SampleGrid(num_images=8, every_n_epochs=2),
        small_sample_metrics(every_n_epochs=2),
        ELBOProfile(),
        Performance(),
    ]
    logger = RunLogger(directory)
    run = trainer(callbacks=[callbacks[i] for i in order], logger=logger, max_epochs=3, limit_val_batches=1)
    run.fit(tiny_module(), digits())
    return run_files(directory) | {"hparams.yaml": b""}  # in the order of the callbacks


@pytest.mark.parametrize("averaging", [ema, ema_of_lightning])
def test_any_order_of_callbacks_gives_the_same_files(tmp_path, averaging):
    orders = [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1, 2, 0, 3, 4), (2, 3, 4, 0, 1)]
    first, *others = (fit(tmp_path / str(i), averaging, order) for i, order in enumerate(orders))
    assert {"samples/step_0000008.png", "samples/step_0000012.png", "sample_metrics.jsonl"} <= first.keys()
    for order, other in zip(orders[1:], others, strict=True):
        assert other.keys() == first.keys()
        assert not [name for name in first if first[name] != other[name]], order
    records = [json.loads(line) for line in first["sample_metrics.jsonl"].splitlines()]
    assert {record["protocol"]["weights"] for record in records} == {"averaged"}


def test_the_average_of_lightning_is_named_in_test_and_from_a_checkpoint(tmp_path):
    module, metrics = tiny_module(), small_sample_metrics()
    run = trainer(callbacks=[metrics, ema_of_lightning()], max_epochs=1, enable_checkpointing=True, limit_val_batches=0)
    run.fit(module, digits())
    run.test(module, digits(), verbose=False)
    again = trainer(callbacks=[metrics])
    again.test(tiny_module(), digits(), run.checkpoint_callback.best_model_path, verbose=False, weights_only=True)
    lines = [json.loads(line) for line in Path("sample_metrics.jsonl").read_text().splitlines()]
    assert [line["protocol"]["weights"] for line in lines] == ["averaged", "averaged"]
    assert lines[0]["metrics"] == lines[1]["metrics"]


@pytest.mark.parametrize("averaging", [ema, ema_of_lightning])
def test_resuming_a_complete_run_leaves_the_average(tmp_path, averaging):
    whole = tiny_module()
    run = trainer(callbacks=[averaging()], max_epochs=1, enable_checkpointing=True, limit_val_batches=0)
    run.fit(whole, digits())
    resumed = tiny_module()
    path = run.checkpoint_callback.best_model_path
    trainer(callbacks=[averaging()], max_epochs=1).fit(resumed, digits(), ckpt_path=path, weights_only=True)
    equal = all((a == b).all() for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert resumed.averaged == equal
    assert whole.averaged
