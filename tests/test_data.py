import pytest
import torch
from helpers import digits
from sklearn.datasets import load_digits

from lit_ddpm import DiscretizedGaussian
from lit_ddpm.data import DigitsDataModule, ImageTensors, to_float, to_uint8


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_to_floats_and_back(levels):
    level = torch.arange(levels, dtype=torch.uint8)
    x = to_float(level, levels)
    assert x.dtype == torch.float32
    assert float(x.min()) == -1
    assert float(x.max()) == 1
    DiscretizedGaussian(levels).check(x)
    picture = to_uint8(x, levels)
    assert torch.equal(picture, (level.float() * 255 / (levels - 1)).round().byte())
    # Generated values near a level become that level; values outside are clipped, never wrapped.
    assert torch.equal(to_uint8(x + 0.4 / (levels - 1), levels), picture)
    assert to_uint8(torch.tensor([-3.0, 1.01, 9.0]), levels).tolist() == [0, 255, 255]


def test_a_picture_of_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_the_split_is_fixed_shuffled_and_said(monkeypatch):
    said = []
    monkeypatch.setattr("lit_ddpm.data.base.rank_zero_info", said.append)
    data = digits()
    data.setup("fit")
    data.setup("test")
    assert said == ["DigitsDataModule: 1,257 train, 180 val, 360 test images of [1, 8, 8], 17 levels."]
    parts = data.splits()
    assert {name: len(part) for name, part in parts.items()} == {"train": 1257, "val": 180, "test": 360}
    together = torch.cat([part.images.flatten(1) for part in parts.values()])
    source = torch.tensor(load_digits().data).byte()
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, source.tolist()))
    assert all(torch.bincount(part.labels).min() > 5 for part in parts.values())
    assert torch.equal(parts["test"].images, DigitsDataModule().splits()["test"].images)
    assert not torch.equal(parts["test"].images, DigitsDataModule(split_seed=1).splits()["test"].images)
    assert parts["train"].images.dtype == torch.uint8


def order(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([labels for _, labels in loader]).tolist()


def test_the_order_is_a_function_of_seed_and_epoch(monkeypatch):
    data = digits(batch_size=100)
    data.setup("fit")
    first = order(data, 0)
    assert len(first) == 1200
    torch.manual_seed(99)
    assert order(data, 0) == first
    assert order(data, 1) != first
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert order(data, 0) != first


def test_a_batch_is_indexed_at_once_and_normalised_after_the_transfer():
    data = digits(batch_size=32)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, 1, 8, 8)
    assert images.dtype == torch.uint8
    x, same = data.on_after_batch_transfer((images, labels), 0)
    torch.testing.assert_close(x, images / 8 - 1)
    assert same is labels


def test_evaluation_sees_every_image_in_order():
    data = digits(eval_batch_size=50)
    data.setup("test")
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        images = torch.cat([images for images, _ in loader])
        assert torch.equal(images, data.splits()[split].images)


def test_the_histogram_counts_the_training_split():
    data = digits()
    data.setup("test")
    histogram = data.train_histogram()
    assert histogram.shape == (17, 1, 8, 8)
    assert bool((histogram.sum(0) == 1257).all())
    assert int(histogram[0, 0, 0, 0]) == int((data.splits()["train"].images[:, 0, 0, 0] == 0).sum())


def test_an_item_is_an_image_and_its_label():
    images = ImageTensors(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([4, 5, 6]))
    assert len(images) == 3
    assert images[1][1] == 5


def test_bad_sizes_are_refused_by_name():
    for name in ("batch_size", "eval_batch_size"):
        with pytest.raises(ValueError, match=f"{name} = 0 of DigitsDataModule"):
            DigitsDataModule(**{name: 0})
    data = digits(batch_size=2000)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"batch_size = 2000 .* 1257 training images"):
        data.train_dataloader()
