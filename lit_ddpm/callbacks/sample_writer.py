"""Samples as files."""

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

from lit_ddpm.data.pixels import to_uint8
from lit_ddpm.training.module import DDPM

ORIGIN = "samples.json"


class SampleWriter(BasePredictionWriter):
    """Writes what `DDPM.predict_step` makes: a PNG an image, and all of them as ``samples.npz``.

    The ``.npz`` holds ``arr_0``, uint8 ``[N, H, W, C]``, and for a model with labels ``arr_1``, int64 ``[N]``: the
    layout that common FID tools read. ``samples.json`` says what the samples are of, so that a run that was cut off can
    go on, and no other mix with it.

    Args:
        directory: Where to write.
        num_samples: How many samples there will be.
        origin: What makes these samples what they are: weights, sampler, seed.

    Raises:
        ValueError: If the directory holds anything but samples of the same origin.
    """

    def __init__(self, directory: Path, num_samples: int, origin: dict[str, Any]) -> None:
        super().__init__(write_interval="batch")
        note = directory / ORIGIN
        found = json.loads(note.read_text()) if note.is_file() else None
        if found != origin and directory.exists() and any(directory.iterdir()):
            raise ValueError(
                f"{directory} is not empty, and not of the same checkpoint, sampler and seed: name another directory "
                "for the samples with --output_dir."
            )
        self.directory = directory
        self.num_samples = num_samples
        self.origin = origin

    def missing(self, chunk_size: int) -> Iterator[tuple[int, int]]:
        """The chunks, as first number and count, of which an image is not there yet."""
        for first in range(0, self.num_samples, chunk_size):
            count = min(chunk_size, self.num_samples - first)
            if not all(self._path(number).is_file() for number in range(first, first + count)):
                yield first, count

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes down what is made here."""
        if trainer.is_global_zero:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / ORIGIN).write_text(json.dumps(self.origin, indent=1) + "\n")
        trainer.strategy.barrier()

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
        """Writes the images of a chunk as soon as they are there, each at once or not at all."""
        assert isinstance(pl_module, DDPM)
        for number, image in enumerate(to_uint8(prediction, pl_module.levels).cpu(), int(batch[1])):
            partial = self._path(number).with_suffix(f".{trainer.global_rank}.tmp")
            to_pil_image(image).save(partial, format="png")
            partial.replace(self._path(number))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the images of all processes into the ``.npz``, one after another."""
        assert isinstance(pl_module, DDPM)
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        labels = pl_module.sample_cond(torch.arange(self.num_samples)).get("label")
        partial = self.directory / "samples.npz.tmp"
        with zipfile.ZipFile(partial, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                shape = (self.num_samples, *self._pixels(0).shape)
                npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for number in range(self.num_samples):
                    file.write(self._pixels(number).tobytes())
            if labels is not None:
                with archive.open("arr_1.npy", "w") as file:
                    npy.write_array(file, labels.numpy())
        partial.replace(self.directory / "samples.npz")
        print(f"{self.num_samples:,} samples written to {self.directory}")

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06d}.png"

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        with Image.open(self._path(number)) as image:
            return np.atleast_3d(np.asarray(image))
