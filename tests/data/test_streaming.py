"""Images that worker processes read, and resumption in the middle of an epoch."""

import multiprocessing
from pathlib import Path

import lightning
import numpy as np
import pytest
from helpers import RNG, TinyNetwork, image_folder, same_weights, tiny_module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image


@pytest.fixture(params=["fork", "spawn"])
def start_method(request):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def write_images(root, count=24):
    for number in range(count):
        path = Path(root, f"class_{number % 2}", f"{number:02d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def fit_folder(ckpt_path=None, num_workers=0, **kwargs):
    """Fits two epochs of five batches; three of them before the checkpoint in the second epoch."""
    data = image_folder(in_memory=False, skip_damaged=True, num_workers=num_workers)
    lightning.seed_everything(0, verbose=False)
    module = tiny_module(network=TinyNetwork(3, num_steps=20))
    trainer(limit_val_batches=0, **kwargs).fit(module, data, ckpt_path=ckpt_path)
    return module


def test_streaming_resumes_within_an_epoch_bit_exactly(start_method):
    write_images("images")
    damaged = Path("images/class_1/05.png")
    damaged.write_bytes(damaged.read_bytes()[:-40])  # its header is intact
    checkpoint = ModelCheckpoint(dirpath=".", filename="third", every_n_train_steps=8)
    fit_folder(callbacks=[checkpoint], enable_checkpointing=True, max_steps=8)
    with pytest.warns(UserWarning, match=r"^1 damaged images are replaced .*; new: images/class_1/05.png\.$"):
        resumed = fit_folder(ckpt_path="third.ckpt", num_workers=1)
    assert multiprocessing.get_start_method() == start_method
    whole = fit_folder()
    assert same_weights(resumed, whole)
    assert not same_weights(resumed, fit_folder(max_epochs=1))
