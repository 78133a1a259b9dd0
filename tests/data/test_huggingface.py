"""Datasets in the format of Hugging Face."""

import subprocess
import sys

import datasets as huggingface
import numpy as np
import pytest
import torch
from helpers import fit_images, set_up
from PIL import Image

from lit_ddpm.data import HuggingFaceDataModule


def rows(count=12):
    return {
        "picture": [Image.fromarray(np.full((6, 6, 3), i, np.uint8)) for i in range(count)],
        "digit": [i % 3 for i in range(count)],
    }


def hugging_face(**kwargs):
    sizes = {"val_size": 2, "test_size": 2, "batch_size": 4}
    return HuggingFaceDataModule("set", **{"image_column": "picture", **sizes, **kwargs})


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_hugging_face_dataset_on_disk(in_memory):
    features = huggingface.Features({"picture": huggingface.Image(), "digit": huggingface.ClassLabel(num_classes=3)})
    huggingface.DatasetDict(train=huggingface.Dataset.from_dict(rows(), features=features)).save_to_disk("set")
    data = set_up(hugging_face(label_column="digit", in_memory=in_memory))
    assert (data.image_shape, data.num_classes) == ((3, 6, 6), 3)
    images, labels = data.splits()["train"].__getitems__(range(8))
    assert torch.equal(labels, images[:, 0, 0, 0] % 3)
    assert data.fingerprint() == set_up(hugging_face(label_column="digit", in_memory=in_memory)).fingerprint()
    assert fit_images(data).global_step == 2


def test_the_splits_of_a_dataset_are_used():
    splits = {"train": rows(12), "validation": rows(4), "test": rows(3), "extra": rows(2)}
    sets = {name: huggingface.Dataset.from_dict(columns) for name, columns in splits.items()}
    huggingface.DatasetDict(sets).save_to_disk("set")
    data = set_up(hugging_face(label_column="digit"))
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 12, "val": 4, "test": 3}
    assert data.splits()["test"].images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert len(set_up(hugging_face(split="train")).splits()["train"]) == 8
    huggingface.DatasetDict(one=sets["train"], two=sets["test"]).save_to_disk("other")
    with pytest.raises(ValueError, match="other has no split train, but one, two: set split"):
        HuggingFaceDataModule("other", image_column="picture").setup("fit")


def test_settings_of_the_hub_are_passed_on(monkeypatch):
    asked = {}

    def load(path, **options):
        asked.update(options, path=path)
        return huggingface.Dataset.from_dict(rows())

    monkeypatch.setattr(huggingface, "load_dataset", load)
    set_up(hugging_face(name="small", revision="v1", data_files="a.parquet"))
    assert asked == {"path": "set", "name": "small", "revision": "v1", "data_files": "a.parquet"}


def test_a_missing_hugging_face_dataset_is_one_sentence(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"path = set is neither a dataset directory nor .* Hub \(no network\)"):
        hugging_face().setup("fit")
    huggingface.DatasetDict(train=huggingface.Dataset.from_dict(rows())).save_to_disk("set")
    with pytest.raises(ValueError, match=r"split = 'dev' is not in set: it has train"):
        hugging_face(split="dev").setup("fit")
    with pytest.raises(ValueError, match=r"image_column = 'image' is not a column of set: it has picture, digit"):
        hugging_face(image_column="image").setup("fit")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs datasets: pip install \"lit-ddpm\[huggingface\]\""):
        hugging_face().setup("fit")


def test_importing_the_package_does_not_import_datasets():
    code = "import sys, lit_ddpm.data; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
