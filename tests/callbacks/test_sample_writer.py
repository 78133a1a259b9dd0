import numpy as np
import pytest
import torch
from helpers import tiny_module

from lit_ddpm.callbacks import SampleWriter
from lit_ddpm.cli.trainer import Trainer
from lit_ddpm.data.spec import DataSpec


def test_the_writer_refuses_a_directory_of_other_files(tmp_path):
    (tmp_path / "000000.png").touch()
    writer, module = SampleWriter(tmp_path, 4), tiny_module()
    with pytest.raises(ValueError, match=r"is not empty.*--output_dir"):
        writer.missing(module)
    (tmp_path / "samples.json").write_text('{"seed": 1}')
    with pytest.raises(ValueError, match=r"is not empty, and its images are not of the same weights, sampler and seed"):
        writer.missing(module)
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "samples.json.1234.tmp").touch()  # of a killed process
    assert writer.missing(module) == [(0, 0, 4)]


def predict(module, directory, num_samples, **kwargs):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": "."}
    Trainer(**settings).predict(
        module, num_samples=num_samples, return_predictions=False, output_dir=str(directory), **kwargs
    )
    return np.load(directory / "samples.npz")["arr_0"]


def test_interrupted_sampling_resumes(tmp_path):
    module = tiny_module()
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    made = []
    original = module.predict_step

    def predict_step(batch, batch_idx):
        made.append(batch.first_index)
        return original(batch, batch_idx)

    module.predict_step = predict_step
    whole = predict(module, tmp_path / "a", 30)
    assert made == [0, 8, 16, 24]
    (tmp_path / "a" / "000010.png").unlink()
    (tmp_path / "a" / "samples.npz").unlink()
    made.clear()
    assert np.array_equal(predict(module, tmp_path / "a", 30), whole)
    assert made == [8]
    made.clear()
    more = predict(module, tmp_path / "a", 40)
    assert np.array_equal(more[:30], whole)
    assert made == [24, 32]
    assert np.array_equal(predict(module, tmp_path / "a", 20), whole[:20])
    assert not list((tmp_path / "a").glob("*.tmp"))
    with pytest.raises(ValueError, match="not of the same weights, sampler and seed"):
        predict(module, tmp_path / "a", 30, seed=1)
    with torch.no_grad():
        module.denoiser.network.conv.weight.add_(1)
    with pytest.raises(ValueError, match="not of the same weights, sampler and seed"):
        predict(module, tmp_path / "a", 30)


def test_sampling_is_split_across_ranks(tmp_path):
    module = tiny_module()
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    for devices, strategy in ((1, "auto"), (2, "ddp_fork")):
        run = Trainer(
            devices=devices,
            strategy=strategy,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            default_root_dir=".",
        )
        run.predict(module, num_samples=21, return_predictions=False, output_dir=str(tmp_path / str(devices)))
    one, two = ((np.load(tmp_path / str(devices) / "samples.npz")["arr_0"]) for devices in (1, 2))
    assert one.shape == (21, 8, 8, 1)
    assert np.array_equal(one, two)


def test_two_predictions_of_one_trainer_write_two_folders(tmp_path):
    module = tiny_module()
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    predictor = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    for seed in (0, 1):
        predictor.predict(module, num_samples=4, seed=seed, output_dir=str(tmp_path / str(seed)))
    fresh = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    fresh.predict(module, num_samples=4, seed=0, output_dir=str(tmp_path / "fresh"))
    images = {name: (tmp_path / name / "000000.png").read_bytes() for name in ("0", "1", "fresh")}
    assert images["0"] == images["fresh"] != images["1"]
    assert not any(isinstance(callback, SampleWriter) for callback in predictor.callbacks)
