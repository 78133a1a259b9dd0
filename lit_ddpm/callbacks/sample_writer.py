"""Generated images as files."""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from typing_extensions import override

from lit_ddpm._internal.files import atomic_write, write_json
from lit_ddpm.data.pixels import to_uint8
from lit_ddpm.training.module import DDPM

ORIGIN = "samples.json"


class SampleWriter(BasePredictionWriter):
    """Writes the images of `DDPM.predict_step`: a PNG for each, and all of them as ``samples.npz``.

    The ``.npz`` contains ``arr_0``, uint8 ``[N, H, W, C]``, and for a class-conditional model ``arr_1``, int64 ``[N]``:
    the layout of common FID tools. ``samples.json`` contains the origin of the images, so that an interrupted command
    resumes and different origins do not mix.

    Args:
        directory: The folder to write to.
        num_samples: The number of images.
        origin: A fingerprint of the weights, sampler, guidance and seed.
    """

    def __init__(self, directory: Path, num_samples: int, origin: dict[str, Any]) -> None:
        super().__init__(write_interval="batch")
        path = directory / ORIGIN
        existing = json.loads(path.read_text()) if path.is_file() else None
        if existing != origin and directory.exists() and any(directory.iterdir()):
            raise ValueError(
                f"{directory} is not empty, and its images are not of the same checkpoint, sampler and seed: set "
                "another directory with --output_dir."
            )
        self.directory = directory
        self.num_samples = num_samples
        self.origin = origin

    def missing(self, chunk_size: int) -> Iterator[tuple[int, int]]:
        """Yields the chunks, as first index and count, that have a missing image."""
        for first in range(0, self.num_samples, chunk_size):
            count = min(chunk_size, self.num_samples - first)
            if not all(self._path(index).is_file() for index in range(first, first + count)):
                yield first, count

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_json(self.directory / ORIGIN, self.origin)
        trainer.strategy.barrier()

    @override
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
        assert isinstance(pl_module, DDPM)
        for index, image in enumerate(to_uint8(prediction, pl_module.levels).cpu(), int(batch[1])):
            with atomic_write(self._path(index)) as partial:
                to_pil_image(image).save(partial, format="png")

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the images of all ranks into the ``.npz``, one after another."""
        assert isinstance(pl_module, DDPM)
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        labels = pl_module.sample_cond(torch.arange(self.num_samples)).get("label")
        with atomic_write(self.directory / "samples.npz") as partial, zipfile.ZipFile(partial, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                shape = (self.num_samples, *self._pixels(0).shape)
                npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for index in range(self.num_samples):
                    file.write(self._pixels(index).tobytes())
            if labels is not None:
                with archive.open("arr_1.npy", "w") as file:
                    npy.write_array(file, labels.numpy())
        print(f"{self.num_samples:,} samples written to {self.directory}")

    def _path(self, index: int) -> Path:
        return self.directory / f"{index:06d}.png"

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        with Image.open(self._path(index)) as image:
            return np.atleast_3d(np.asarray(image))
