"""The statistics of the training images, measured once and kept in a file."""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_ddpm.data.pixels import to_uint8
from lit_ddpm.metrics.features import extract, identity_of, name_of, resize_of
from lit_ddpm.metrics.fid import KID_IMAGES, RealStatistics
from lit_ddpm.training.distributed import gather, gather_in_turn
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.sampling import is_quick, progress


def real_statistics(
    trainer: Trainer, module: DDPM, extractor: nn.Module, num_features: int, cache_dir: Path
) -> RealStatistics:
    """The statistics of the images that the data module's ``reference_dataloader()`` gives, on every process.

    They are read from `cache_dir` or measured and kept there, if the data module has a ``fingerprint()``. In a
    ``fast_dev_run`` they are those of one batch.

    Raises:
        ValueError: If the data module has no such method, or the file is not of these images and this extractor.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "reference_dataloader"):
        raise ValueError(
            "SampleMetrics needs the training images without augmentation: give the data module, "
            f"{type(data).__name__}, a method reference_dataloader(), as ImageDataModule has."
        )
    loader = data.reference_dataloader()
    quick = is_quick(trainer)
    if quick or not hasattr(data, "fingerprint"):
        return _measure(trainer, module, extractor, num_features, islice(loader, 1 if quick else None), 1)
    path, stored, origin = None, None, {}
    if trainer.is_global_zero:
        # The first images tell of a module that changes them in unpack_batch.
        first = _pixels(module, next(iter(loader)))
        origin = {
            "data": data.fingerprint(),
            "split": "train",
            "image_shape": list(module.image_shape or ()),
            "levels": module.levels,
            "first_images": hashlib.sha256(first.numpy().tobytes()).hexdigest(),
            "extractor": identity_of(extractor),
            "resize": resize_of(extractor),
        }
        key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()
        path = cache_dir / f"{name_of(extractor)}_{key[:16]}.safetensors"
        stored = RealStatistics.load(path, origin) if path.is_file() else None
    stored = trainer.strategy.broadcast(stored)
    if stored is not None:
        return stored
    every = max(1, len(loader.dataset) // KID_IMAGES)
    real = _measure(trainer, module, extractor, num_features, loader, every)
    if path is not None:
        try:
            real.save(path, origin)
        except OSError as error:
            rank_zero_warn(f"the statistics of real images were not kept: {path} cannot be written ({error.strerror}).")
    return real


def _pixels(module: DDPM, batch: Any) -> Tensor:
    return to_uint8(module.unpack_batch(batch)[0], module.levels)


def _measure(
    trainer: Trainer, module: DDPM, extractor: nn.Module, num_features: int, batches: Iterable[Any], every: int
) -> RealStatistics:
    """The statistics of all processes' batches; the features of every so-manyth image are kept for the KID."""
    total = torch.zeros(num_features, dtype=torch.float64)
    products, count, kept = torch.outer(total, total), 0, []
    for batch in progress(trainer, batches, f"measuring the real images for {name_of(extractor)}"):
        features = extract(extractor, _pixels(module, batch).to(module.device))[0].cpu()
        exact = features.double()
        total, products, count = total + exact.sum(0), products + exact.T @ exact, count + len(features)
        kept.append(features[::every])
    totals, all_products, counts = zip(*gather(trainer, (total, products, count)), strict=True)
    features = torch.cat(gather_in_turn(trainer, kept))
    return RealStatistics(torch.stack(totals).sum(0), torch.stack(all_products).sum(0), sum(counts), features)
