"""Image folders."""

from pathlib import Path

import pytest
import torch
from helpers import error_of, fit_images, image_folder, set_up, write_image_folder

from lit_ddpm.data import ImageTensors


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_with_a_subfolder_for_each_class(in_memory):
    write_image_folder("images")
    data = set_up(image_folder(in_memory=in_memory))
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
    assert fit_images(data).global_step == 2


def test_a_flat_folder_has_no_classes():
    write_image_folder("images", classes=0)
    data = set_up(image_folder())
    assert data.num_classes is None
    assert set(data.splits()["train"].labels.tolist()) == {0}


def test_unusable_folders_are_one_sentence(capsys):
    Path("empty").mkdir()
    args = ["fit", "--data=lit_ddpm.data.ImageFolderDataModule"]
    assert "root = empty of ImageFolderDataModule has no images" in error_of(capsys, [*args, "--data.root=empty"])
    assert "root = nowhere of ImageFolderDataModule is not a folder" in error_of(capsys, [*args, "--data.root=nowhere"])
    write_image_folder("images")
    message = error_of(capsys, [*args, "--data.root=images"])
    assert (
        "test_size = 1000, val_size = 1000 must each be at least 1 and leave at least one of the 12 images" in message
    )
    assert "Option 'image_siez' is not accepted" in error_of(
        capsys, [*args, "--data.root=images", "--data.image_siez=3"]
    )
    for name, value in (("channels", 2), ("image_size", 0), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name} = {value} of ImageFolderDataModule must"):
            image_folder(**{name: value})
