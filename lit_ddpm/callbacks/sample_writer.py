"""Samples as files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from lit_ddpm.data.pixels import to_uint8
from lit_ddpm.module import DDPM


class SampleWriter(BasePredictionWriter):
    """Writes what `DDPM.predict_step` makes: a PNG an image, and all of them as ``samples.npz``.

    The ``.npz`` holds one array, ``arr_0``, uint8 ``[N, H, W, C]``: the layout that common FID tools read.

    Args:
        directory: Where to write; it must be empty or not there yet.

    Raises:
        ValueError: If the directory holds anything.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(write_interval="batch")
        if directory.exists() and any(directory.iterdir()):
            raise ValueError(f"{directory} is not empty: name another directory for the samples with --output_dir.")
        self.directory = directory

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the images of a chunk as soon as they are there."""
        assert isinstance(pl_module, DDPM)
        self.directory.mkdir(parents=True, exist_ok=True)
        first_index = int(batch[1])
        for number, image in enumerate(to_uint8(prediction, pl_module.levels).cpu(), first_index):
            to_pil_image(image).save(self.directory / f"{number:06d}.png")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the images of all processes into the ``.npz``."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            paths = sorted(self.directory.glob("*.png"))
            arrays = [np.atleast_3d(np.asarray(Image.open(path))) for path in paths]
            np.savez(self.directory / "samples.npz", np.stack(arrays))
            print(f"{len(paths):,} samples written to {self.directory}")
