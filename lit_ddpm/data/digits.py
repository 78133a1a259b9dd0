"""The handwritten digits of scikit-learn, which need no download."""

import torch
from typing_extensions import override

from lit_ddpm.data.base import ImageDataModule, ImageTensors, split_rows


class DigitsDataModule(ImageDataModule):
    """The 1,797 images of ``sklearn.datasets.load_digits``: 8x8 pixels, one channel, 17 gray levels, ten classes.

    They are the test part of the UCI "Optical Recognition of Handwritten Digits" dataset. A shuffle with a fixed seed
    splits them into 1,257 training, 180 validation and 360 test images.

    Args:
        batch_size: Images in a training batch of each rank.
        eval_batch_size: Images in a validation or test batch of each rank.
        split_seed: The seed of the shuffle. Results of different splits are not comparable.
    """

    image_shape = (1, 8, 8)
    levels = 17
    num_classes = 10

    def __init__(self, batch_size: int = 128, eval_batch_size: int = 180, split_seed: int = 0) -> None:
        super().__init__(batch_size, eval_batch_size)
        self.split_seed = split_seed

    @override
    def splits(self) -> dict[str, ImageTensors]:
        from sklearn.datasets import load_digits  # takes a second, and only this class needs it

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.uint8)[:, None]
        labels = torch.tensor(digits.target, dtype=torch.int64)
        rows = split_rows(len(images), {"test": 360, "val": 180}, self.split_seed)
        return {name: ImageTensors(images[rows[name]], labels[rows[name]]) for name in ("train", "val", "test")}
