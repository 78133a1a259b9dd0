"""Data modules of real sets, on small files in the sets' own formats."""

import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import datasets as huggingface
import numpy as np
import pytest
import torch
from conftest import TinyNetwork
from helpers import tiny_module, trainer
from PIL import Image
from sets import RNG, write_cifar, write_mnist
from test_cli import error_of

from lit_ddpm.callbacks import SampleMetrics
from lit_ddpm.data import HuggingFaceDataModule, ImageFolderDataModule, ImageTensors, TorchvisionDataModule
from lit_ddpm.data.base import split_rows


def write_folder(root, count=12, classes=2, size=(10, 8), mode="RGB"):
    """Images of one size in a subfolder for each class; the first channel of image i is i."""
    for number in range(count):
        folder = Path(root) / (f"class_{number % classes}" if classes else "")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((*size, 3) if mode == "RGB" else size, number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def folder(root="images", **kwargs):
    return ImageFolderDataModule(root, **{"val_size": 2, "test_size": 2, "batch_size": 4, **kwargs})


def ready(data):
    data.setup("fit")
    return data


def fit(data, **kwargs):
    module = tiny_module(network=TinyNetwork(data.image_shape[0], num_steps=20))
    run = trainer(max_epochs=1, limit_val_batches=1, **kwargs)
    run.fit(module, data)
    return run


# --- torchvision's sets


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_from_its_files(name):
    written = write_mnist("data", name)
    data = ready(TorchvisionDataModule(name, val_size=10, batch_size=8))
    assert data.image_shape == (1, 28, 28)
    assert (data.levels, data.num_classes) == (256, 10)
    splits = data.splits()
    assert {split: len(images) for split, images in splits.items()} == {"train": 50, "val": 10, "test": 12}
    assert np.array_equal(splits["test"].images[:, 0].numpy(), written["t10k"])
    together = np.concatenate([splits["val"].images[:, 0], splits["train"].images[:, 0]])
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in written["train"])
    assert fit(data).global_step == 6


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_from_its_files(monkeypatch, classes):
    rows = write_cifar("data", monkeypatch, classes)
    data = ready(TorchvisionDataModule(f"CIFAR{classes}", val_size=10, batch_size=4, flip=True))
    assert data.image_shape == (3, 32, 32)
    assert data.num_classes == classes
    splits = data.splits()
    test = rows["test_batch" if classes == 10 else "test"]
    assert np.array_equal(splits["test"].images.numpy(), test)
    assert splits["train"].images.is_contiguous()
    assert fit(data).global_step == (len(rows) - 1) * 20 // 4 - 3


def test_a_set_that_is_not_there_is_one_sentence(monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    for name in ("MNIST", "CIFAR10"):
        with pytest.raises(ValueError, match=rf"{name} is not in root = nowhere .*cannot be downloaded"):
            TorchvisionDataModule(name, root="nowhere").prepare_data()
        with pytest.raises(ValueError, match=rf"{name} is not in root = nowhere"):
            TorchvisionDataModule(name, root="nowhere", download=False).splits()
    with pytest.raises(ValueError, match="dataset = 'SVHN' must be MNIST"):
        TorchvisionDataModule("SVHN")
    args = ["fit", "--data=lit_ddpm.data.TorchvisionDataModule", "--data.dataset=MNIST", "--data.root=nowhere"]
    assert "MNIST is not in root = nowhere" in error_of(capsys, args)
    assert "data" in error_of(capsys, [*args[:2], "--data.dataset=EMNIST"])


# --- folders


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_with_a_subfolder_for_each_class(in_memory):
    write_folder("images")
    data = ready(folder(in_memory=in_memory))
    assert data.image_shape == (3, 10, 8)
    assert data.classes == ["class_0", "class_1"]
    assert data.num_classes == 2
    splits = data.splits()
    seen = []
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        images, labels = splits[split].__getitems__(range(count))
        assert images.dtype == torch.uint8
        assert images.shape == (count, 3, 10, 8)
        assert torch.equal(labels, images[:, 0, 0, 0] % 2)
        seen += images[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(12))
    assert isinstance(splits["train"], ImageTensors) == in_memory
    assert (data.train_histogram() is None) == (not in_memory)
    assert fit(data).global_step == 2


def test_a_flat_folder_has_no_classes():
    write_folder("images", classes=0)
    data = ready(folder())
    assert data.num_classes is None
    assert set(data.splits()["train"].labels.tolist()) == {0}


def test_any_size_and_grey_or_colour_become_what_is_asked_for():
    write_folder("images", count=6, size=(20, 10))
    write_folder("images/class_2", count=6, classes=0, size=(9, 30), mode="L")
    for channels in (1, 3):
        data = ready(folder(image_size=8, channels=channels))
        images = data.splits()["train"].images
        assert images.shape == (8, channels, 8, 8)
        assert set(images.flatten(1).double().std(1).tolist()) == {0.0}


def test_streaming_reads_with_workers_and_gives_the_same():
    write_folder("images", count=20)
    runs = []
    for settings in ({"in_memory": True}, {"in_memory": False, "num_workers": 2}):
        data = ready(folder(**settings))
        loader = data.train_dataloader()
        loader.sampler.set_epoch(3)
        runs.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(*runs)


def test_a_streamed_folder_can_be_evaluated():
    write_folder("images", count=40)
    extractor = torch.nn.Flatten()
    callback = SampleMetrics(extractor, num_samples=8, num_val_samples=8, kid_subsets=2)
    data = ready(folder(in_memory=False, image_size=4))
    fit(data, callbacks=[callback])
    before = data.fingerprint()
    assert ready(folder(in_memory=False, image_size=5)).fingerprint() != before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: Path("images/class_0/bad.png").write_bytes(b"no image"), r"class_0/bad.png is no image that can be"),
        (lambda: Image.new("P", (8, 10)).save("images/class_0/bad.png"), r"class_0/bad.png has mode P .*convert it"),
        (lambda: Image.new("RGBA", (8, 10)).save("images/class_0/bad.png"), r"class_0/bad.png has mode RGBA"),
        (lambda: Image.new("I;16", (8, 10)).save("images/class_0/bad.png"), r"class_0/bad.png has mode I;16"),
        (
            lambda: Image.new("RGB", (8, 11)).save("images/class_0/bad.png"),
            r"image_size = None .*8x10 .*8x11.*set image",
        ),
        (lambda: Image.new("RGB", (8, 10)).save("images/bad.png"), r"bad.png lies beside the folder class_0"),
    ],
)
def test_an_unfit_image_is_named_at_the_start(capsys, spoil, message):
    write_folder("images")
    spoil()
    with pytest.raises(ValueError, match=message):
        folder().setup("fit")


def test_a_cut_off_image_is_named():
    write_folder("images", count=12, size=(64, 64))
    path = Path("images/class_1/005.png")
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"class_1/005.png is damaged .*remove it"):
        folder().setup("fit")
    streamed = ready(folder(in_memory=False))
    (holder,) = (split for split in streamed.splits().values() if path in split.rows)
    with pytest.raises(ValueError, match=r"class_1/005.png is damaged"):
        holder.__getitems__(range(len(holder)))


def test_folders_that_cannot_serve_are_one_sentence(capsys):
    Path("empty").mkdir()
    args = ["fit", "--data=lit_ddpm.data.ImageFolderDataModule"]
    assert "root = empty of ImageFolderDataModule has no images" in error_of(capsys, [*args, "--data.root=empty"])
    assert "root = nowhere of ImageFolderDataModule is not a folder" in error_of(capsys, [*args, "--data.root=nowhere"])
    write_folder("images")
    message = error_of(capsys, [*args, "--data.root=images"])
    assert "test_size = 1000, val_size = 1000 must each be at least 1 and leave some of the 12 images" in message
    assert "Option 'image_siez' is not accepted" in error_of(
        capsys, [*args, "--data.root=images", "--data.image_siez=3"]
    )
    for name, value in (("channels", 2), ("image_size", 0), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name} = {value} of ImageFolderDataModule must"):
            folder(**{name: value})


# --- Hugging Face


def rows(count=12):
    return {
        "picture": [Image.fromarray(np.full((6, 6, 3), i, np.uint8)) for i in range(count)],
        "digit": [i % 3 for i in range(count)],
    }


def hugging_face(**kwargs):
    sizes = {"val_size": 2, "test_size": 2, "batch_size": 4}
    return HuggingFaceDataModule("set", **{"image_column": "picture", **sizes, **kwargs})


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_set_of_hugging_face_on_disk(in_memory):
    features = huggingface.Features({"picture": huggingface.Image(), "digit": huggingface.ClassLabel(num_classes=3)})
    huggingface.DatasetDict(train=huggingface.Dataset.from_dict(rows(), features=features)).save_to_disk("set")
    data = ready(hugging_face(label_column="digit", in_memory=in_memory))
    assert (data.image_shape, data.num_classes) == ((3, 6, 6), 3)
    images, labels = data.splits()["train"].__getitems__(range(8))
    assert torch.equal(labels, images[:, 0, 0, 0] % 3)
    assert data.fingerprint() == ready(hugging_face(label_column="digit", in_memory=in_memory)).fingerprint()
    assert fit(data).global_step == 2


def test_a_set_that_hugging_face_cannot_give_is_one_sentence(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"path = set is no set on disk, and none that the hub gives \(no network\)"):
        hugging_face().setup("fit")
    huggingface.DatasetDict(train=huggingface.Dataset.from_dict(rows())).save_to_disk("set")
    with pytest.raises(ValueError, match=r"split = 'dev' is not in set: it has train"):
        hugging_face(split="dev").setup("fit")
    with pytest.raises(ValueError, match=r"image_column = 'image' is no column of set: it has picture, digit"):
        hugging_face(image_column="image").setup("fit")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs datasets: pip install \"lit-ddpm\[huggingface\]\""):
        hugging_face().setup("fit")


# --- what they share


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


def test_flips_are_of_training_alone_and_a_function_of_the_place_in_it():
    write_folder("images", count=24, size=(4, 4))
    for path in Path("images").rglob("*.png"):
        Image.fromarray(RNG.integers(0, 256, (4, 4, 3), np.uint8)).save(path)
    seen = {}
    for run in (1, 2):
        data = folder(flip=True, batch_size=6)
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


def test_a_split_is_disjoint_whole_and_a_function_of_its_seed():
    split = split_rows(100, {"test": 20, "val": 10}, seed=3)
    assert {name: len(part) for name, part in split.items()} == {"test": 20, "val": 10, "train": 70}
    assert sorted(split["test"] + split["val"] + split["train"]) == list(range(100))
    assert split == split_rows(100, {"test": 20, "val": 10}, seed=3)
    assert split != split_rows(100, {"test": 20, "val": 10}, seed=4)


def test_importing_the_package_does_not_import_datasets():
    code = "import sys, lit_ddpm.data; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "mnist"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real MNIST files are not here")
def test_the_real_mnist_files_are_read():
    from benchmarks.mnist_files import MNISTFiles

    data = ready(MNISTFiles(str(REAL)))
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 9000, "val": 200, "test": 800}
    labels = torch.cat([split.labels for split in data.splits().values()])
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
