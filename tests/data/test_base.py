from argparse import Namespace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import RNG, TinyNetwork, digits, image_folder, tiny_module, trainer, write_image_folder
from PIL import Image
from sklearn.datasets import load_digits

from lit_ddpm.data import DigitsDataModule, ImageDataModule, ImageTensors, TorchvisionDataModule
from lit_ddpm.data.base import split_rows


def test_the_split_is_fixed_shuffled_and_logged(monkeypatch):
    logged = []
    monkeypatch.setattr("lit_ddpm.data.base.rank_zero_info", logged.append)
    data = digits()
    data.setup("fit")
    data.setup("test")
    assert logged == ["DigitsDataModule: 1,257 train, 180 val, 360 test images of [1, 8, 8], 17 levels."]
    parts = data.splits()
    assert {name: len(part) for name, part in parts.items()} == {"train": 1257, "val": 180, "test": 360}
    together = torch.cat([part.images.flatten(1) for part in parts.values()])
    source = torch.tensor(load_digits().data).byte()
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, source.tolist()))
    assert all(torch.bincount(part.labels).min() > 5 for part in parts.values())
    assert torch.equal(parts["test"].images, DigitsDataModule().splits()["test"].images)
    assert not torch.equal(parts["test"].images, DigitsDataModule(split_seed=1).splits()["test"].images)
    assert parts["train"].images.dtype == torch.uint8


def test_batches_are_normalized_after_the_transfer():
    data = digits(batch_size=32)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, 1, 8, 8)
    assert images.dtype == torch.uint8
    x, same = data.on_after_batch_transfer((images, labels), 0)
    torch.testing.assert_close(x, images / 8 - 1)
    assert same is labels


def test_training_batches_are_complete_and_without_repetition():
    data = digits(batch_size=100)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(images) for images, _ in batches] == [100] * 12
    rows = {image.numpy().tobytes() for images, _ in batches for image in images}
    assert rows <= {image.numpy().tobytes() for image in data.splits()["train"].images}
    assert len(rows) == 1200


def test_ranks_share_the_images_in_order():
    data = digits(batch_size=300, eval_batch_size=100)
    data.setup("fit")
    shares = []
    for rank in (0, 1):
        data.trainer = Namespace(world_size=2, global_rank=rank)
        assert len(data.train_dataloader().sampler) == 629  # half of 1,257, rounded up
        shares.append(list(data.reference_dataloader()))
    batches = [batch for pair in zip_longest(*shares) for batch in pair if batch is not None]
    together = torch.cat([images for images, _ in batches])
    torch.testing.assert_close(together, data.splits()["train"].images / 8 - 1)
    data.batch_size = 700
    with pytest.raises(ValueError, match=r"batch_size = 700 on 2 rank\(s\) is more than the 1257 training images"):
        data.train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_workers_persist_where_there_are_any(num_workers):
    data = digits()
    data.num_workers = num_workers
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert loader.num_workers == num_workers
        assert loader.persistent_workers == (num_workers > 0)


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
        assert getattr(DigitsDataModule(**{name: 1}), name) == 1
    data = digits(batch_size=2000)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"batch_size = 2000 .* 1257 training images"):
        data.train_dataloader()
    data.batch_size = 1257
    assert len(data.train_dataloader()) == 1


def test_labels_out_of_range_are_refused():
    class Wrong(TorchvisionDataModule):
        num_classes = 5

        def splits(self):
            images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
            return dict.fromkeys(("train", "val", "test"), ImageTensors(images, torch.tensor([0, 1, 2, 10])))

    with pytest.raises(
        ValueError, match=r"train split of Wrong has labels 0 to 10; with num_classes = 10 they must be 0"
    ):
        Wrong("MNIST").setup("fit")


def test_an_empty_split_is_refused():
    class Empty(DigitsDataModule):
        def splits(self):
            splits = super().splits()
            return splits | {"val": ImageTensors(splits["val"].images[:0], splits["val"].labels[:0])}

    with pytest.raises(ValueError, match="the val split of Empty is empty"):
        Empty().setup("fit")


def test_training_images_are_shuffled():
    data = digits(batch_size=1257)
    data.setup("fit")
    ((_, labels),) = data.train_dataloader()
    in_order = data.splits()["train"].labels
    assert not torch.equal(labels, in_order)
    assert torch.equal(labels.sort().values, in_order.sort().values)


def test_settings_of_an_own_data_module():
    class Own(ImageDataModule):
        def splits(self):
            return {}

    data = Own()
    assert (data.batch_size, data.eval_batch_size, data.flip, data.num_workers) == (128, 128, False, 0)
    assert (data.levels, data.num_classes) == (256, None)


def test_flips_are_reproducible_and_in_training_only():
    write_image_folder("images", count=24, size=(4, 4))
    for path in Path("images").rglob("*.png"):
        Image.fromarray(RNG.integers(0, 256, (4, 4, 3), np.uint8)).save(path)
    seen = {}
    for run in (1, 2):
        data = image_folder(flip=True, batch_size=6)
        module = tiny_module(network=TinyNetwork(3, num_steps=20))
        original = module.unpack_batch

        def unpack(batch, run=run, module=module, original=original):
            kind = "train" if module.trainer.training else "val"
            seen.setdefault((run, kind), []).append(batch[0].clone())
            torch.rand(run)  # flips do not depend on the global stream
            return original(batch)

        module.unpack_batch = unpack
        trainer(max_epochs=2).fit(module, data)
    splits = data.splits()

    def to_levels(batches):
        return ((torch.cat(batches) + 1) * 127.5).round().byte()

    assert torch.equal(torch.cat(seen[1, "train"]), torch.cat(seen[2, "train"]))
    assert torch.equal(to_levels(seen[1, "val"])[:2], splits["val"].images)
    source = {image.numpy().tobytes() for image in splits["train"].images}
    mirrored = {image.numpy().tobytes() for image in splits["train"].images.flip(-1)}
    trained = [image.numpy().tobytes() for image in to_levels(seen[1, "train"])]
    assert all(image in source | mirrored for image in trained)
    assert 0 < sum(image in mirrored for image in trained) < len(trained)
    reference = [images for images, _ in data.reference_dataloader()]
    assert torch.equal(to_levels(reference), splits["train"].images)


def test_split_rows_is_a_partition_given_by_the_seed():
    split = split_rows(100, {"test": 20, "val": 10}, seed=3)
    assert {name: len(part) for name, part in split.items()} == {"test": 20, "val": 10, "train": 70}
    assert sorted(split["test"] + split["val"] + split["train"]) == list(range(100))
    assert split == split_rows(100, {"test": 20, "val": 10}, seed=3)
    assert split != split_rows(100, {"test": 20, "val": 10}, seed=4)
    assert len(split_rows(100, {"test": 98, "val": 1}, seed=3)["train"]) == 1
    for sizes in ({"test": 99, "val": 1}, {"test": 20, "val": 0}):
        with pytest.raises(ValueError, match=r"each be at least 1 and leave at least one of the 100 images"):
            split_rows(100, sizes, seed=3)


def test_a_dataset_may_read_its_labels_with_the_images():
    class Streamed:
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitems__(self, indices):
            return self.images.__getitems__(indices)

    class Streaming(DigitsDataModule):
        def splits(self):
            return {name: Streamed(images) for name, images in super().splits().items()}

    data = Streaming(batch_size=64)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 1, 8, 8)
    assert labels.shape == (64,)
