"""Pictures of samples of any shape."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import RNG, tiny_module, trainer
from PIL import Image

from lit_ddpm import DDPM, Evaluation, LowResolution, UNet
from lit_ddpm.callbacks import SampleGrid
from lit_ddpm.callbacks.pictures import draw_samples
from lit_ddpm.cli.trainer import Trainer
from lit_ddpm.data import ArrayDataModule, Standardization


def picture(samples, columns=2, standardization=None, levels=256, **kwargs):
    image, note = draw_samples(samples, columns, levels, standardization, **kwargs)
    return np.asarray(image), note


def cell(image, row=0, column=0, size=32):
    start_row, start_column = 2 + row * (size + 2), 2 + column * (size + 2)
    return image[start_row : start_row + size, start_column : start_column + size]


@pytest.mark.parametrize(("channels", "note"), [(1, ""), (2, "channel 1 of 2"), (3, ""), (5, "channels 1 to 3 of 5")])
def test_images_of_any_number_of_channels(channels, note):
    samples = torch.rand(4, channels, 32, 32) * 2 - 1
    image, found = picture(samples)
    assert found == note
    expected = ((samples[3] + 1) * 127.5).round().byte()
    expected = expected[:1].expand(3, -1, -1) if channels < 3 else expected[:3]
    assert np.array_equal(cell(image, 1, 1), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("depth", [5, 8])
def test_a_volume_is_its_middle_slice(depth):
    samples = torch.rand(2, 1, depth, 32, 32) * 2 - 1
    image, note = picture(samples)
    assert note == "middle slices"
    assert np.array_equal(cell(image, 0, 1)[..., 0], ((samples[1, 0, depth // 2] + 1) * 127.5).round().byte().numpy())


def test_real_values_are_drawn_in_standard_deviations():
    scale = Standardization(torch.tensor([50.0]), torch.tensor([10.0]))
    samples = torch.tensor([0.0, 3.0, -3.0, 9.0]).reshape(4, 1, 1, 1).expand(-1, -1, 32, 32)
    image, note = picture(samples, columns=4, standardization=scale)
    assert note == "black to white from -3 to 3 standard deviations"
    assert [int(cell(image, 0, column)[0, 0, 0]) for column in range(4)] == [128, 255, 0, 255]


@pytest.mark.parametrize(("channels", "note"), [(1, ""), (3, ""), (4, "channels 1 to 3 of 4")])
def test_sequences_are_curves(channels, note):
    samples = torch.sin(torch.linspace(0, 9, 40)).expand(6, channels, 40) * torch.arange(1, 7)[:, None, None]
    image, found = picture(samples, columns=3)
    assert found == note
    assert image.shape == (220, 450, 3)
    assert (image < 200).any(2).sum() > 500  # the curves
    assert not np.array_equal(image, picture(samples.flip(0), columns=3)[0])


def test_conditions_of_other_channels_and_units():
    samples, cond = torch.zeros(2, 3, 32, 32), torch.full((2, 1, 8, 8), 50.0)
    image, note = picture(samples, columns=6, cond=cond, truth=samples + 1, cond_in_units=False)
    assert note == "condition, sample and truth side by side"
    assert [int(cell(image, 0, column)[0, 0, 0]) for column in range(6)] == [255, 128, 255] * 2
    sequences = {"cond": torch.ones(2, 1, 10) * 50, "truth": torch.zeros(2, 1, 20)}
    image, _ = picture(torch.zeros(2, 1, 20), columns=3, **sequences, cond_in_units=False)
    assert image.shape == (220, 450, 3)


@pytest.mark.parametrize("shape", [(2, 12), (5, 8, 8), (1, 4, 8, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_fit_draws_samples_and_a_prediction_writes_them(shape, dtype):
    content = RNG.integers(0, 256, (20, *shape)).astype(dtype)
    network = UNet(shape[0], width=8, multipliers=[1], num_blocks=1, attention_levels=[], dims=len(shape) - 1)
    module = tiny_module(network=network)
    trainer(max_epochs=1, callbacks=[SampleGrid(3, num_trajectories=1)]).fit(
        module, ArrayDataModule(content, batch_size=8)
    )
    for name in ("step", "trajectory"):
        (path,) = Path("samples").glob(f"{name}*")
        assert np.asarray(Image.open(path)).std() > 5
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=".")
    run.predict(module, num_samples=3, output_dir="out")
    samples = np.load("out/samples.npz")["arr_0"]
    assert (samples.dtype, samples.shape) == (dtype, (3, *shape))
    assert np.array_equal(np.load("out/000001.npy"), samples[1])
    expected = module.sample(3)
    if dtype is not np.float32:
        levels = {np.uint8: 256, np.uint16: 65_536}[dtype]
        expected = ((expected.clamp(-1, 1) + 1) * (levels - 1) / 2).round()
    assert np.abs(samples.astype(np.float64) - expected.double().numpy()).max() <= (1e-3 if dtype is np.float32 else 1)
    for index in range(3):  # an interrupted prediction resumes
        Path(f"out/{index:06d}.npy").unlink()
    run.predict(module, num_samples=3, output_dir="out")
    assert np.array_equal(np.load("out/samples.npz")["arr_0"], samples)


def test_sixteen_bit_images_are_sixteen_bit_files():
    content = RNG.integers(0, 65_536, (20, 1, 8, 8)).astype(np.uint16)
    module = tiny_module()
    trainer(max_epochs=1).fit(module, ArrayDataModule(content, batch_size=8))
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=".")
    run.predict(module, num_samples=2, output_dir="out")
    written = np.asarray(Image.open("out/000001.png"))
    assert written.dtype == np.uint16
    expected = ((module.sample(2).clamp(-1, 1) + 1) * 32767.5).round()
    assert np.abs(written.astype(int) - expected[1, 0].long().numpy()).max() <= 1
    assert np.load("out/samples.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_what_cannot_be_drawn_is_one_sentence(caplog):
    class Plane(torch.nn.Linear):
        def forward(self, x_t, t):
            return super().forward(x_t)

    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        data = ArrayDataModule(torch.randn(20, 2), batch_size=8)
        trainer(max_epochs=1, callbacks=[SampleGrid(3)]).fit(tiny_module(network=Plane(2, 2)), data)
    assert caplog.text.count("SampleGrid draws sequences, images and volumes, not samples of shape [2].") == 1
    assert not Path("samples").exists()


def test_conditions_of_sequences_are_drawn():
    module = DDPM(UNet(dims=1, width=8, cond_channels=1), condition=LowResolution(2), evaluation=Evaluation(2))
    content = torch.randn(30, 1, 16).cumsum(-1)
    run = trainer(
        max_epochs=1, callbacks=[SampleGrid(4, num_trajectories=0)], fast_dev_run=False, limit_train_batches=1
    )
    module.sampler.num_steps = 2
    run.fit(module, ArrayDataModule(content, batch_size=8))
    (path,) = Path("samples").glob("step*")
    assert "side by side" in Image.open(path).text["Description"]
