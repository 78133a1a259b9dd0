"""Features of real and generated images, computed on all ranks."""

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
from lit_ddpm.data.protocols import HasFingerprint, HasReference
from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.metrics.features import ExtractorInfo, extract
from lit_ddpm.metrics.fid import KID_IMAGES, RealStatistics
from lit_ddpm.training.distributed import gather_objects, gather_round_robin
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.sampling import draw, is_fast_dev_run, progress


def num_features_of(extractor: nn.Module, module: DDPM) -> int:
    """Returns the number of features, measured on two gray images, so that an unsuitable extractor fails early."""
    if module.image_shape is None:
        raise ValueError("SampleMetrics needs a data module with image_shape = (C, H, W).")
    with torch.random.fork_rng(devices=[]):  # a network draws its initial weights when it is built
        images = torch.full((2, *module.image_shape), 128, dtype=torch.uint8, device=module.device)
        return extract(extractor, images)[0].shape[1]


def generated_features(
    trainer: Trainer, module: DDPM, extractor: nn.Module, sampler: Sampler, num_images: int, seed: int, name: str
) -> tuple[Tensor, Tensor | None]:
    """Draws images and returns their features ``[N, D]`` and logits ``[N, K]``, if any, in order, on every rank.

    The features of an image that is not finite are NaN. The progress bar shows the `name` of the extractor.
    """

    def measure(images: Tensor) -> tuple[Tensor, Tensor | None]:
        finite = torch.isfinite(images).flatten(1).all(1)
        features, logits = extract(extractor, to_uint8(images.nan_to_num(), module.levels))
        return features.where(finite[:, None], torch.nan).cpu(), None if logits is None else logits.cpu()

    chunks = draw(trainer, module, num_images, seed, sampler, measure, f"drawing for fid_{name}")
    logits = [chunk[1] for chunk in chunks if chunk[1] is not None]
    return torch.cat([chunk[0] for chunk in chunks]), torch.cat(logits) if logits else None


def real_statistics(
    trainer: Trainer, module: DDPM, extractor: nn.Module, num_features: int, cache_dir: Path
) -> RealStatistics:
    """Returns the statistics of the images of the data module's ``reference_dataloader()``, on every rank.

    They are cached in `cache_dir` if the data module has a ``fingerprint()``. In a ``fast_dev_run`` they are those of a
    single batch.

    Raises:
        ValueError: If the data module has no such method, or the file belongs to other images or another extractor.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, HasReference):
        raise ValueError(
            "SampleMetrics needs the training images without augmentation: give the data module, "
            f"{type(data).__name__}, a method reference_dataloader(), as ImageDataModule has."
        )
    loader = data.reference_dataloader()
    info = ExtractorInfo.of(extractor)
    fast_dev_run = is_fast_dev_run(trainer)
    if fast_dev_run or not isinstance(data, HasFingerprint):
        batches = islice(loader, 1 if fast_dev_run else None)
        return _measure(trainer, module, extractor, num_features, batches, 1, info.name)
    path, cached, origin = None, None, {}
    if trainer.is_global_zero:
        # The first images reveal a module that transforms them in unpack_batch.
        first = _pixels(module, next(iter(loader)))
        origin = {
            "data": data.fingerprint(),
            "split": "train",
            "image_shape": list(module.image_shape or ()),
            "levels": module.levels,
            "first_images": hashlib.sha256(first.numpy().tobytes()).hexdigest(),
            "extractor": str(info),
            "resize": info.resize,
        }
        key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()
        path = cache_dir / f"{info.name}_{key[:16]}.safetensors"
        cached = RealStatistics.load(path, origin) if path.is_file() else None
    cached = trainer.strategy.broadcast(cached)
    if cached is not None:
        return cached
    every = max(1, len(loader.dataset) // KID_IMAGES)  # type: ignore[arg-type]  # a dataset with a length
    real = _measure(trainer, module, extractor, num_features, loader, every, info.name)
    if path is not None:
        try:
            real.save(path, origin)
        except OSError as error:
            rank_zero_warn(f"the statistics of real images are not cached: {path} is not writable ({error.strerror}).")
    return real


def _pixels(module: DDPM, batch: Any) -> Tensor:
    return to_uint8(module.unpack_batch(batch)[0], module.levels)


def _measure(
    trainer: Trainer,
    module: DDPM,
    extractor: nn.Module,
    num_features: int,
    batches: Iterable[Any],
    every: int,
    name: str,
) -> RealStatistics:
    """Returns the statistics of the batches of all ranks; the features of every n-th image are kept for the KID."""
    total = torch.zeros(num_features, dtype=torch.float64)
    products, count, kept = torch.outer(total, total), 0, []
    for batch in progress(trainer, batches, f"measuring the real images for {name}"):
        features = extract(extractor, _pixels(module, batch).to(module.device))[0].cpu()
        exact = features.double()
        total, products, count = total + exact.sum(0), products + exact.T @ exact, count + len(features)
        kept.append(features[::every])
    totals, all_products, counts = zip(*gather_objects(trainer, (total, products, count)), strict=True)
    features = torch.cat(gather_round_robin(trainer, kept))
    return RealStatistics(torch.stack(totals).sum(0), torch.stack(all_products).sum(0), sum(counts), features)
