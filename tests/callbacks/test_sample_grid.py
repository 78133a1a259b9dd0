from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TinyNetwork, digits, fit, tiny_module, trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_ddpm import AncestralSampler, UNet
from lit_ddpm.callbacks import EMA, SampleGrid
from lit_ddpm.callbacks.pictures import image_grid
from lit_ddpm.callbacks.sample_grid import draw_trajectories
from lit_ddpm.data.spec import DataSpec


def test_the_grid_is_drawn_every_n_epochs_and_at_the_end():
    fit(EMA(0.9), SampleGrid(num_images=5, columns=3, every_n_epochs=2), max_epochs=3, num_sanity_val_steps=1)
    assert sorted(path.name for path in Path("samples").glob("step*")) == ["step_0000008.png", "step_0000012.png"]
    picture = Image.open("samples/step_0000012.png")
    assert picture.text["Description"] == "step 12, AncestralSampler with 20 steps, seed 0"
    assert np.asarray(picture).shape == (2 * (32 + 2) + 2, 3 * (32 + 2) + 2, 3)
    assert np.asarray(picture).std() > 20


@pytest.mark.parametrize("channels", [1, 3])
def test_a_trajectory_goes_from_noise_to_an_image(channels):
    module = tiny_module(network=TinyNetwork(channels, num_steps=20))
    module.observe(DataSpec(image_shape=(channels, 8, 6)))
    sampler = AncestralSampler(12, chunk_size=4)
    images, times = draw_trajectories(module, sampler, num_images=3, seed=1)
    assert images.shape == (3 * 2 * 10, channels, 8, 6)
    assert (times[0], times[-1], len(times)) == (20, sampler.timesteps(module.denoiser.schedule)[-2], 10)
    rows = images.reshape(3, 2, 10, channels, 8, 6)
    assert rows[:, 0, 0].std() == pytest.approx(1, abs=0.15)  # x_T is noise
    with torch.no_grad():
        for column, t in enumerate(times):
            assert torch.equal(rows[:, 1, column], module.denoiser.eval()(rows[:, 0, column], t))
    assert torch.equal(images, draw_trajectories(module, sampler, 3, seed=1)[0])
    assert not torch.equal(images, draw_trajectories(module, sampler, 3, seed=2)[0])


def test_a_trajectory_of_few_steps_shows_all_of_them():
    module = tiny_module()
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    images, times = draw_trajectories(module, AncestralSampler(3), num_images=1, seed=0)
    assert times == [20, 13, 7]
    assert len(images) == 2 * 3


@pytest.mark.parametrize("devices", [2, 4])
def test_the_grid_is_the_same_on_any_number_of_processes(devices):
    grids = []
    for count in (1, devices):
        grid = SampleGrid(num_images=20, columns=5)
        run = trainer(
            callbacks=[EMA(0.9), grid],
            devices=count,
            strategy="auto" if count == 1 else "ddp_fork",
            max_epochs=1,
            default_root_dir=str(count),
            limit_val_batches=1,
            limit_train_batches=1,
        )
        # Batches differ with the number of processes; a learning rate of zero keeps the weights equal.
        run.fit(tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=0.0)), digits(batch_size=64))
        grids.append({path.name: path.read_bytes() for path in (Path(str(count)) / "samples").iterdir()})
    assert set(grids[0]) == {"step_0000001.png", "trajectory_0000001.png"}
    assert grids[0] == grids[1]


def test_the_grid_goes_to_tensorboard():
    fit(EMA(0.9), SampleGrid(num_images=2), max_epochs=1, logger=TensorBoardLogger(".", name="tb", version=""))
    events = EventAccumulator("tb")
    events.Reload()
    for key in ("sample/grid", "sample/trajectory"):
        (image,) = events.Images(key)
        assert image.step == 3  # counted from 0, as Lightning does for metrics


def test_the_grid_goes_to_wandb_as_uint8():
    class ImageLogger(WandbLogger):
        """The part of WandbLogger that the grid uses; it needs no account."""

        def __init__(self):
            self.seen = []

        def log_image(self, key, images, step=None, **kwargs):
            self.seen.append((key, images, step))

        log_metrics = log_hyperparams = log_graph = save = finalize = after_save_checkpoint = lambda *args, **kwargs: (
            None
        )
        name, version, save_dir = "", "", "."

    logger = ImageLogger()
    fit(EMA(0.9), SampleGrid(num_images=2), max_epochs=1, logger=logger)
    assert [key for key, *_ in logger.seen] == ["sample/grid", "sample/trajectory"]
    for _, (image,), step in logger.seen:
        assert (step, image.mode) == (3, "RGB")
        assert np.asarray(image).std() > 20


def test_bad_settings_are_refused_by_name():
    for name in ("num_images", "columns", "every_n_epochs"):
        with pytest.raises(ValueError, match=f"{name} = 0 of SampleGrid"):
            SampleGrid(**{name: 0})
    with pytest.raises(ValueError, match=r"num_steps = 21 .*at most the schedule's 20"):
        fit(EMA(0.9), SampleGrid(sampler=AncestralSampler(21)))
    with pytest.raises(ValueError, match="SampleGrid needs a DDPM, not a BoringModel"):
        trainer(callbacks=SampleGrid()).fit(BoringModel())


def test_small_images_are_enlarged_and_large_ones_left():
    assert image_grid(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 1).shape == (3, 70, 36)
    assert image_grid(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), 2).shape == (3, 68, 134)


def test_a_grid_without_labels_has_eight_columns():
    assert SampleGrid().columns is None
    module = tiny_module()
    assert module.denoiser.network_spec.num_classes is None
    assert UNet(num_classes=4).num_classes == 4


def test_a_second_fit_of_equal_length_draws_its_last_grid(tmp_path):
    grid, expected = SampleGrid(num_images=2, num_trajectories=0, every_n_epochs=10), "samples/step_0000004.png"
    for name in ("first", "second"):
        fit(grid, max_epochs=1, default_root_dir=tmp_path / name)
        assert (tmp_path / name / expected).is_file()
