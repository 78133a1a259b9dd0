"""Arrays in memory and in files."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import RNG, set_up, tiny_module, trainer
from safetensors.torch import save_file

from lit_ddpm import DDPM, Evaluation, GaussianDecoder, UNet
from lit_ddpm.__main__ import main
from lit_ddpm.data import ArrayDataModule, Standardization


def values(*shape, dtype=np.float32):
    return RNG.integers(0, 256, shape).astype(dtype)


def arrays(data, **kwargs) -> ArrayDataModule:
    return ArrayDataModule(data, **{"batch_size": 4, **kwargs})


def small_unet(shape, **kwargs) -> UNet:
    return UNet(shape[0], width=8, multipliers=[1], num_blocks=1, attention_levels=[], dims=len(shape) - 1, **kwargs)


@pytest.mark.parametrize("shape", [(2, 9), (1, 6, 5), (5, 4, 4), (1, 4, 3, 5), (3,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_samples_of_any_shape_and_type(shape, dtype):
    content = values(30, *shape, dtype=dtype)
    data = set_up(arrays(content))
    assert data.image_shape == shape
    assert data.levels == {np.uint8: 256, np.uint16: 65_536}.get(dtype)
    splits = data.splits()
    assert [len(splits[name]) for name in ("train", "val", "test")] == [24, 3, 3]
    seen = torch.cat([splits[name].__getitems__(range(len(splits[name])))[0] for name in splits])
    assert seen.dtype == {np.uint8: torch.uint8, np.uint16: torch.uint16}.get(dtype, torch.float32)
    assert torch.equal(
        seen.double().flatten(1).sort(0).values, torch.tensor(content).double().flatten(1).sort(0).values
    )
    (x, labels) = data.on_after_batch_transfer(splits["train"].__getitems__(range(24)), 0)
    if data.levels is None:
        per_channel = x.transpose(0, 1).flatten(1)
        torch.testing.assert_close(per_channel.mean(1), torch.zeros(shape[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(per_channel.std(1, correction=0), torch.ones(shape[0]), atol=1e-4, rtol=0)
    else:
        assert x.min() >= -1
        assert x.max() <= 1
    assert set(labels.tolist()) == {0}
    assert data.num_classes is None


FORMATS = ("npz", "pt", "safetensors")


@pytest.mark.parametrize(("suffix", "name"), [("npy", ""), *((s, n) for s in FORMATS for n in ("", ":images"))])
def test_files(suffix, name):
    content, labels = values(20, 1, 4, 4, dtype=np.uint8), np.arange(20) % 3
    named = {"images": torch.from_numpy(content)} | ({"labels": torch.from_numpy(labels)} if name else {})
    path = f"data.{suffix}"
    if suffix == "npy":
        np.save(path, content)
    elif suffix == "npz":
        np.savez(path, **{key: array.numpy() for key, array in named.items()})
    elif suffix == "pt":
        torch.save(named if name else named["images"], path)
    else:
        save_file(named, path)
    data = set_up(arrays(path + name, labels=f"{path}:labels" if name else None, test_size=5))
    assert data.num_classes == (3 if name else None)
    test = data.splits()["test"]
    assert len(test) == 5
    images, found = test.__getitems__([0, 3])
    assert torch.equal(images, torch.from_numpy(content)[test.rows[[0, 3]]])
    assert torch.equal(
        found, torch.from_numpy(labels)[test.rows[[0, 3]]] if name else torch.zeros(2, dtype=torch.int64)
    )


def test_large_files_are_mapped_and_not_read_into_memory(monkeypatch):
    np.save("data.npy", values(20, 1, 4, 4))
    torch.save(torch.from_numpy(values(20, 1, 4, 4)), "data.pt")
    modes = []
    load_npy, load_pt = np.load, torch.load
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: modes.append(kwargs) or load_npy(*args, **kwargs))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: modes.append(kwargs) or load_pt(*args, **kwargs))
    splits = [set_up(arrays(path)).splits() for path in ("data.npy", "data.pt")]
    assert [mode.get("mmap_mode") or mode.get("mmap") for mode in modes] == ["c", "c", True, True]
    for split in splits:  # one array for all splits, without a copy of its rows
        assert split["train"].images.data_ptr() == split["test"].images.data_ptr()
        assert len(split["train"].images) == 20


def test_splits_of_their_own():
    parts = {"train": values(12, 2, 8), "valid": values(3, 2, 8), "test": values(4, 2, 8)}
    np.savez("data.npz", **parts)
    for source in (parts, {name: f"data.npz:{name}" for name in parts}):
        splits = set_up(arrays(source)).splits()
        assert {name: len(split) for name, split in splits.items()} == {"train": 12, "val": 3, "test": 4}
        assert torch.equal(splits["val"].__getitems__([2])[0][0], torch.from_numpy(parts["valid"][2]))
    splits = set_up(arrays({"train": parts["train"], "test": parts["test"]}, val_size=2)).splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 10, "val": 2, "test": 4}


def test_statistics_are_those_of_the_training_split(caplog):
    train = np.stack([np.full((10, 6), 7.0), np.full((10, 6), -1e4)], 1)
    train[::2] += np.array([1.0, 50.0])[:, None]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        data = set_up(arrays({"train": train, "val": train + 100, "test": train - 100}))
    torch.testing.assert_close(data.standardization.mean, torch.tensor([7.5, -9975.0]))
    torch.testing.assert_close(data.standardization.std, torch.tensor([0.5, 25.0]))
    assert "mean 7.5, -9975 and the standard deviation 0.5, 25 of the training split" in caplog.text
    assert f"is {np.log([0.5, 25.0]).mean():.4f} nats/dim more" in caplog.text


def test_standardization_is_undone():
    scale = Standardization(torch.tensor([1.0, -3.0]), torch.tensor([2.0, 0.1]))
    x = torch.randn(4, 2, 3, 5)
    torch.testing.assert_close(scale.undo(scale.apply(x)), x)


def test_a_real_valued_model_in_the_units_of_the_data():
    """Samples, also those of a checkpoint, have the mean of the data; the bound is in nats; nothing is clipped."""
    content = torch.randn(64, 1, 12) * 5 + 300
    module = tiny_module(network=small_unet((1, 12)))
    run = trainer(max_epochs=1, enable_checkpointing=True)
    run.fit(module, arrays(content, batch_size=16))
    assert isinstance(module.decoder, GaussianDecoder)
    assert not module.denoiser.clip
    assert "val/nats_per_dim" in run.callback_metrics
    samples = module.sample(4)
    assert 285 < float(samples.min()) < float(samples.max()) < 315  # within three standard deviations
    run.save_checkpoint("a.ckpt")
    loaded = DDPM.load_from_checkpoint("a.ckpt")
    assert not loaded.denoiser.clip
    torch.testing.assert_close(loaded.sample(4), samples)
    run.fit(module, arrays(values(40, 1, 12, dtype=np.uint8)))  # the same module, other data
    assert module.denoiser.clip
    assert module.decoder.levels == 256
    assert module.sample(4).abs().max() <= 1.001


def test_clipping_real_values_is_refused():
    with pytest.raises(ValueError, match=r"clip = True limits x_0 to \[-1, 1\].* real values of ArrayDataModule"):
        trainer().fit(DDPM(small_unet((1, 12)), clip=True), arrays(values(40, 1, 12)))


def test_conditions_reach_the_network():
    content, conditions = values(40, 1, 6, 6, dtype=np.uint8), values(40, 2, 3, 3, dtype=np.uint8)
    conditions[:, 0, 0, 0] = content[:, 0, 0, 0]
    labels = torch.arange(40) % 3 - 1  # -1 is a row without a label
    data = arrays(content, labels=labels, conditions=conditions)
    network = small_unet((1, 6, 6), num_classes=2, cond_channels=2)
    seen = []
    network.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True)
    module = tiny_module(network=network, evaluation=Evaluation(2))
    trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1).fit(module, data)
    for x, kwargs in seen:
        assert kwargs["cond"].shape == (len(x), 2, 3, 3)
        assert float(kwargs["cond"].min()) >= -1
    assert {int(label) for _, kwargs in seen for label in kwargs["label"]} == {0, 1, 2}  # 2 means "no label"
    x_0, cond = module.unpack_batch(data.on_after_batch_transfer(data.splits()["val"].__getitems__(range(4)), 0))
    torch.testing.assert_close(cond["cond"][:, 0, 0, 0], x_0[:, 0, 0, 0])


def test_flips_include_the_conditions():
    content = values(40, 1, 4, 6, dtype=np.uint8)
    data = arrays(content, conditions=content, flip=True, batch_size=8)
    module = tiny_module(network=small_unet((1, 4, 6), cond_channels=1))
    flipped, original = [], module.unpack_batch

    def unpack(batch):
        x_0, cond = original(batch)
        torch.testing.assert_close(cond["cond"], x_0)
        rows = {row.tobytes() for row in content}
        flipped.extend(((x + 1) * 127.5).round().byte().numpy().tobytes() not in rows for x in x_0)
        return x_0, cond

    module.unpack_batch = unpack
    trainer(max_epochs=1, limit_val_batches=0).fit(module, data)
    assert 0 < sum(flipped) < len(flipped)


def spoiled(row, value):
    content = values(10, 1, 4)
    content[row, 0, 2] = value
    return content


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "absent.npy"}, "data = absent.npy does not exist"),
        ({"data": "data.csv"}, r"data = data.csv must be a file of the format .npy, .npz, .pt, .safetensors"),
        ({"data": "bad.npz"}, "data = bad.npz is damaged, or does not load safely"),
        ({"data": "two.npz"}, r"data = two.npz must name one of the arrays of the file, as in two.npz:NAME: a, b"),
        ({"data": "two.npz:c"}, r"data = two.npz:c must name one of the arrays"),
        ({"data": values(10)}, r"data.train has the shape \[10\]: it must be \[N, C, ...\]"),
        ({"data": values(0, 1, 4)}, r"data.train has the shape \[0, 1, 4\]"),
        (
            {"data": {"train": values(9, 1, 4), "test": values(9, 1, 5)}},
            r"data.test has rows of \[1, 5\].* as in data.tr",
        ),
        ({"data": {"test": values(9, 1, 4)}}, "data has the splits test: they must be train"),
        ({"data": {"train": values(9, 1, 4), "extra": values(9, 1, 4)}}, "data has the splits train, extra"),
        ({"data": spoiled(7, np.nan)}, "row 7 of data.train has the value nan: it must be finite"),
        ({"data": spoiled(3, np.inf)}, "row 3 of data.train has the value inf"),
        (
            {"data": values(10, 1, 4, dtype=np.uint8), "levels": 17},
            r"row \d of data.train has the value \d+: .* 0 to 16",
        ),
        ({"data": spoiled(2, -1).astype(np.int64), "levels": 256}, "row 2 of data.train has the value -1"),
        (
            {"data": values(10, 1, 4, dtype=np.int64)},
            "levels = None of ArrayDataModule does not fit data of torch.int64",
        ),
        (
            {"data": values(10, 1, 4), "levels": 256},
            "levels = 256 of ArrayDataModule does not fit data of torch.float32",
        ),
        ({"data": values(10, 1, 4, dtype=np.complex64)}, "does not fit data of torch.complex64"),
        ({"data": np.ones((10, 2, 4))}, "channel 0 of data has the value 1 in all training rows"),
        (
            {"data": values(10, 1, 4), "labels": np.arange(9)},
            "labels.train has 9 rows: it must have one for each of the 10 of data.train",
        ),
        ({"data": values(10, 1, 4), "labels": np.arange(10) - 2}, "labels.train must be integers"),
        ({"data": values(10, 1, 4), "labels": np.arange(10) / 2}, "labels.train must be integers"),
        (
            {"data": values(10, 1, 4), "conditions": values(8, 1, 4)},
            "conditions.train has 8 rows: it must have one for each of the 10",
        ),
        ({"data": values(10, 1, 4), "conditions": spoiled(5, np.nan)}, "row 5 of conditions.train has the value nan"),
        ({"data": values(2, 1, 4)}, "test_size = 1, val_size = 1 must each be at least 1 and leave at least one"),
        ({"data": np.array([["a"]])}, "data is an array of <U1: it must be of numbers"),
    ],
)
def test_bad_arrays_are_one_sentence(settings, message):
    Path("bad.npz").write_bytes(b"no array")
    np.savez("two.npz", a=values(5, 1, 4), b=values(5, 1, 4))
    with pytest.raises(ValueError, match=message) as error:
        set_up(ArrayDataModule(**settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        ({"dims": 2}, {}, r"dims = 2 of UNet does not fit image_shape = \[2, 8\] .* set dims to 1"),
        ({"dims": 1}, {}, r"in_channels = 1 of UNet does not fit images of image_shape = \[2, 8\]"),
        ({"dims": 1, "in_channels": 2, "cond_channels": 3}, {}, "cond_channels = 3 of UNet .* which has no conditions"),
        (
            {"dims": 1, "in_channels": 2},
            {"conditions": values(20, 3, 8)},
            "cond_channels = None of UNet .* of 3 channels",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(network, settings, message):
    network = UNet(width=8, multipliers=[1], num_blocks=1, attention_levels=[], **network)
    with pytest.raises(ValueError, match=message):
        trainer().fit(DDPM(network), arrays(values(20, 2, 8), **settings))


@pytest.mark.parametrize(("dtype", "monitor"), [(np.float32, "val/nats_per_dim"), (np.uint8, "val/bpd")])
def test_the_commands_take_an_array(dtype, monitor):
    np.save("data.npy", values(30, 1, 8, 8, dtype=dtype))
    data = ["--data=ArrayDataModule", "--data.data=data.npy", "--data.batch_size=8"]
    small = ["--model.network=UNet", "--model.network.width=8", "--model.network.attention_levels=[]"]
    small += ["--model.schedule=CosineSchedule", "--model.schedule.num_steps=8", "--trainer.max_epochs=1"]
    main(["fit", *data, *small])
    best = "runs/ddpm/checkpoints/best.ckpt"
    states = torch.load(best, weights_only=True)["callbacks"]
    assert [state["monitor"] for name, state in states.items() if name.startswith("BestCheckpoint")] == [monitor]
    main(["test", "--ckpt_path", best])
    main(["predict", "--ckpt_path", best, "--num_samples=3"])
    samples = np.load("runs/ddpm/predict/samples.npz")["arr_0"]
    real = dtype is np.float32
    assert (samples.dtype, samples.shape) == ((np.float32, (3, 1, 8, 8)) if real else (np.uint8, (3, 8, 8, 1)))
    assert len(list(Path("runs/ddpm/predict").glob("0*.npy" if real else "0*.png"))) == 3


def test_splits_given_on_the_command_line():
    np.savez("data.npz", train=values(16, 1, 8), test=values(4, 1, 8), classes=np.arange(16) % 2)
    data = ["--data=ArrayDataModule", "--data.data={train: 'data.npz:train', test: 'data.npz:test'}"]
    small = ["--model.network=UNet", "--model.network.dims=1", "--model.network.width=8", "--data.batch_size=8"]
    main(["fit", *data, *small, "--trainer.fast_dev_run=true"])


def test_the_fingerprint_follows_the_values():
    content = values(20, 1, 4)
    first = set_up(arrays(content)).fingerprint()
    assert first == set_up(arrays(content.copy())).fingerprint()
    assert first != set_up(arrays(content + 1)).fingerprint()
    assert first != set_up(arrays(content, split_seed=1)).fingerprint()


def test_the_histogram_of_arrays():
    content = values(50, 1, 4, dtype=np.uint8)
    data = set_up(arrays(content))
    train = data.splits()["train"]
    histogram = data.train_histogram()
    assert histogram.shape == (256, 1, 4)
    assert int(histogram[:, 0, 2].argmax()) in set(content[:, 0, 2].tolist())
    assert bool((histogram.sum(0) == len(train)).all())
    assert set_up(arrays(content.astype(np.uint16))).train_histogram() is None
    assert set_up(arrays(content.astype(np.float32))).train_histogram() is None


def test_a_network_of_the_user_trains_on_points_in_the_plane():
    class Plane(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Linear(3, 2)

        def forward(self, x_t, t):
            return self.layers(torch.cat([x_t, t[:, None] / 20], 1))

    run = trainer(max_epochs=1)
    run.fit(tiny_module(network=Plane()), arrays(torch.randn(40, 2)))
    assert "val/nats_per_dim" in run.callback_metrics


def test_a_file_with_several_arrays_is_read_once(monkeypatch):
    np.savez("data.npz", train=values(12, 1, 4), test=values(3, 1, 4), a=np.arange(12) % 2, b=np.arange(3) % 2)
    read, load = [], np.load
    monkeypatch.setattr(np, "load", lambda path, **kwargs: read.append(path) or load(path, **kwargs))
    names = {"train": "data.npz:train", "test": "data.npz:test"}
    data = set_up(arrays(names, labels={"train": "data.npz:a", "test": "data.npz:b"}))
    assert len(read) == 1
    assert data.num_classes == 2
