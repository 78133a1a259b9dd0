"""Generated images as files."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import InputError, check_at_least
from lit_ddpm._internal.config import as_config
from lit_ddpm._internal.files import atomic_write, create_directory, has_files, write_json
from lit_ddpm.data.pixels import to_levels, to_uint8
from lit_ddpm.metrics.features import fingerprint_of
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.sampling import SampleChunk

ORIGIN = "samples.json"


class SampleWriter(Callback):
    """Writes the images of a seed that ``predict`` draws: a file for each, and all of them as ``samples.npz``.

    - Images of one or three channels are PNGs, in 16 bits for more than 256 levels, and ``arr_0`` of the ``.npz`` is
      ``[N, H, W, C]``.
    - Other samples are ``.npy`` files, and ``arr_0`` is ``[N, C, ...]``: pixel levels, or real values in the units of
      the data.

    For a class-conditional model ``arr_1`` has the labels, int64 ``[N]``: the layout of common FID tools.
    ``samples.json`` contains the origin of the images, so that an interrupted command resumes and different origins do
    not mix.

    Args:
        directory: The folder to write to.
        num_samples: The number of images.
        seed: The seed of the images.
    """

    def __init__(self, directory: Path, num_samples: int, seed: int = 0) -> None:
        check_at_least(self, 1, num_samples=num_samples)
        self.directory = directory
        self.num_samples = num_samples
        self.seed = seed
        self._origin: dict[str, Any] = {}  # of `missing`
        self._suffix = ".png"  # likewise

    def missing(self, module: DDPM) -> list[SampleChunk]:
        """Returns the chunks with an image that is not in the directory, at least one.

        Raises:
            ValueError: If the directory contains other files, or images of other weights, another sampler or seed.
        """
        self._origin = _origin_of(module, self.seed)
        self._suffix = ".png" if _fits_png(module) else ".npy"
        path = self.directory / ORIGIN
        existing = json.loads(path.read_text()) if path.is_file() else None
        if existing != self._origin and has_files(self.directory):
            raise InputError(
                f"{self.directory} is not empty, and its images are not of the same weights, sampler and seed: set "
                "another directory with --output_dir."
            )
        chunks = SampleChunk.split(module.sampler, self.num_samples, self.seed)
        missing = [chunk for chunk in chunks if not all(self._path(index).is_file() for index in chunk.indices)]
        return missing or chunks[:1]

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            create_directory(self.directory)
            write_json(self.directory / ORIGIN, self._origin)
        trainer.strategy.barrier()

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        assert isinstance(pl_module, DDPM)
        values = _file_values(pl_module, outputs.cpu())
        for index, value in zip(batch.indices, values, strict=True):
            with atomic_write(self._path(index)) as partial, partial.open("wb") as file:
                if self._suffix == ".png":
                    Image.fromarray(value.permute(1, 2, 0).squeeze(-1).numpy()).save(file, format="png")
                else:
                    np.save(file, value.numpy())

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
                first = self._read(0)
                descr, shape = npy.dtype_to_descr(first.dtype), (self.num_samples, *first.shape)
                npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
                for index in range(self.num_samples):
                    file.write(self._read(index).tobytes())
            if labels is not None:
                with archive.open("arr_1.npy", "w") as file:
                    npy.write_array(file, labels.numpy())
        print(f"{self.num_samples:,} samples written to {self.directory}")

    def _path(self, index: int) -> Path:
        return self.directory / f"{index:06d}{self._suffix}"

    def _read(self, index: int) -> NDArray[Any]:
        if self._suffix == ".npy":
            return np.ascontiguousarray(np.load(self._path(index)))
        with Image.open(self._path(index)) as image:
            return np.atleast_3d(np.asarray(image))


def _origin_of(module: DDPM, seed: int) -> dict[str, Any]:
    """Returns a fingerprint of the weights, sampler, guidance, conditions and seed."""
    return {
        "weights": fingerprint_of(module.denoiser),
        "sampler": as_config(module.sampler),
        "guidance": module.guidance.scale,
        "conditions": None if module.held_out is None else module.held_out.name,
        "seed": seed,
    }


def _fits_png(module: DDPM) -> bool:
    channels, *size = module.data.image_shape or (0,)
    allowed = (1, 3) if module.levels <= 256 else (1,)
    return module.data.standardization is None and channels in allowed and len(size) == 2


def _file_values(module: DDPM, samples: Tensor) -> Tensor:
    """Returns samples ``[B, C, ...]`` as they are written: uint8 for a PNG, else pixel levels or real values."""
    if module.data.standardization is not None:
        return samples.float()
    if _fits_png(module) and module.levels <= 256:
        return to_uint8(samples, module.levels)
    return to_levels(samples, module.levels)
