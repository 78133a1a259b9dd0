"""Real handwritten digits that come with scikit-learn: nothing to download."""

import torch

from lit_ddpm.data.base import ImageDataModule, ImageTensors


class DigitsDataModule(ImageDataModule):
    """The 1,797 images of ``sklearn.datasets.load_digits``: 8x8 pixels, one channel, 17 grey levels, ten classes.

    They are the test part of the UCI "Optical Recognition of Handwritten Digits" set. A shuffle with a fixed seed
    splits them into 1,257 training, 180 validation and 360 test images.

    Args:
        batch_size: Images in a training batch on each process.
        eval_batch_size: Images in a validation or test batch on each process.
        split_seed: The seed of the shuffle. Figures of different splits are not comparable.
    """

    image_shape = (1, 8, 8)
    levels = 17

    def __init__(self, batch_size: int = 128, eval_batch_size: int = 180, split_seed: int = 0) -> None:
        super().__init__(batch_size, eval_batch_size)
        self.split_seed = split_seed

    def splits(self) -> dict[str, ImageTensors]:
        """See `ImageDataModule.splits`."""
        from sklearn.datasets import load_digits  # a second of import that only this class needs

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.uint8)[:, None]
        labels = torch.tensor(digits.target, dtype=torch.int64)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.split_seed))
        parts = zip(("test", "val", "train"), torch.split(order, [360, 180, 1257]), strict=True)
        return {name: ImageTensors(images[rows], labels[rows]) for name, rows in reversed(list(parts))}
