"""Datasets in the format of Hugging Face."""

import subprocess
import sys

import datasets as huggingface
import numpy as np
import pytest
import torch
from helpers import fit_images, set_up
from PIL import Image, ImageFile

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


def save(splits, **features):
    """Saves a dataset of several splits, with features in place of the inferred ones."""
    sets = {}
    for name, columns in splits.items():
        inferred = huggingface.Dataset.from_dict(columns).features
        known = {column: features.get(column, inferred[column]) for column in columns}
        sets[name] = huggingface.Dataset.from_dict(columns, features=huggingface.Features(known))
    huggingface.DatasetDict(sets).save_to_disk("set")


def test_rows_without_a_label_have_minus_one():
    known, unknown = rows(12), rows(3)
    known["digit"][:2] = [None, -1]
    del unknown["digit"]
    save({"train": known, "validation": rows(3), "test": unknown})
    data = hugging_face(label_column="digit")
    splits = data.splits()
    assert data.num_classes == 3
    assert splits["train"].labels.tolist() == [-1, -1, *known["digit"][2:]]
    assert splits["val"].labels.tolist() == [0, 1, 2]
    assert splits["test"].labels.tolist() == [-1, -1, -1]


def test_class_names_count_the_classes():
    columns = rows(6)
    columns["digit"] = [0, None, 1, -1, 0, 1]
    save({"train": columns}, digit=huggingface.ClassLabel(names=["a", "b", "c", "d"]))
    data = hugging_face(label_column="digit")
    data.splits()
    assert data.num_classes == 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([None] * 6, "label_column = 'digit' of set has no label in train"),
        ([-1] * 6, "label_column = 'digit' of set has no label in train"),
        (["a", None] * 3, "label_column = 'digit' of set must have integers in train"),
        ([0.5] * 6, "label_column = 'digit' of set must have integers in train"),
    ],
)
def test_unusable_labels_are_one_sentence(labels, message):
    save({"train": rows(6) | {"digit": labels}, "test": rows(6)})
    with pytest.raises(ValueError, match=message):
        hugging_face(label_column="digit").splits()


def test_the_training_split_needs_the_label_column():
    save({"train": {"picture": rows(6)["picture"]}, "test": rows(6)})
    with pytest.raises(ValueError, match="label_column = 'digit' is not a column of set: it has picture"):
        hugging_face(label_column="digit").splits()


def test_a_column_without_images_is_one_sentence():
    save({"train": rows(6)})
    with pytest.raises(ValueError, match=r"image_column = 'digit' of set has no images in train, but Value\("):
        hugging_face(image_column="digit").splits()


def test_each_image_is_decoded_once(monkeypatch):
    save({"train": rows(12)})
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda file: decoded.append(file.tile != []) or load(file))
    hugging_face(in_memory=False).splits()["train"].fingerprint()
    assert sum(decoded) == 0
    hugging_face(check_overlap=True).splits()
    assert sum(decoded) == 12


def test_images_by_path_are_opened_where_they_are(monkeypatch):
    for number in range(6):
        Image.new("RGB", (6, 6), (number, 0, 0)).save(f"{number}.png")
    paths = huggingface.Dataset.from_dict({"picture": [f"{number}.png" for number in range(6)]})
    dataset = paths.cast_column("picture", huggingface.Image())
    monkeypatch.setattr(huggingface, "load_dataset", lambda path: dataset)
    images = torch.cat([split.images for split in hugging_face(check_overlap=True).splits().values()])
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(6))


def test_rows_without_an_image_are_damaged():
    columns = rows(12)
    columns["picture"][5] = None
    save({"train": columns, "test": rows(3)})
    with pytest.raises(ValueError, match=r"^row 5 of train is damaged \(it has no image\): remove it"):
        hugging_face().splits()
    with pytest.warns(UserWarning, match=r"^1 damaged images are left out: row 5 of train\.$"):
        splits = hugging_face(skip_damaged=True, check_overlap=False).splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "val": 2, "test": 3}


def test_rows_that_splits_share_are_reported():
    save({"train": rows(12), "validation": rows(2), "test": {"picture": [Image.new("L", (6, 6))] * 2}})
    with pytest.warns(UserWarning, match=r"^2 val images are also train images, such as row 0 of val = row 0 of train"):
        hugging_face().splits()


@pytest.mark.parametrize("kind", ["torch", "arrow"])
def test_a_saved_format_does_not_change_the_rows(kind):
    dataset = huggingface.Dataset.from_dict(rows(12)).with_format(kind)
    huggingface.DatasetDict(train=dataset).save_to_disk("set")
    images, labels = hugging_face(label_column="digit", in_memory=False).splits()["train"].__getitems__(range(8))
    assert torch.equal(labels, images[:, 0, 0, 0] % 3)


def test_fingerprints_are_those_of_rows_and_settings():
    save({"train": rows(12)})
    others = [hugging_face(in_memory=False, **settings) for settings in ({}, {"split_seed": 1}, {"image_size": 3})]
    assert len({other.splits()["train"].fingerprint() for other in [*others, *others]}) == 3


def test_an_empty_dataset_is_one_sentence(monkeypatch):
    features = huggingface.Features({"picture": huggingface.Image()})
    empty = huggingface.Dataset.from_dict({"picture": []}, features=features)
    monkeypatch.setattr(huggingface, "load_dataset", lambda path: empty)
    with pytest.raises(ValueError, match="HuggingFaceDataModule has no images"):
        hugging_face().splits()


def test_importing_the_package_does_not_import_datasets():
    code = "import sys, lit_ddpm.data; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
