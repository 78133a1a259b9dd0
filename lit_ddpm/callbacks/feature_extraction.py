"""Features of real and generated images, computed on all ranks."""

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_ddpm._internal.checks import InputError
from lit_ddpm.data.pixels import to_uint8
from lit_ddpm.data.protocols import HasFingerprint, HasReference
from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.metrics.features import ExtractorInfo, extract
from lit_ddpm.metrics.fid import KID_IMAGES, RealStatistics
from lit_ddpm.training.distributed import gather_results, interleave
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.sampling import draw, is_fast_dev_run, progress


class FeatureExtraction:
    """The features of an extractor for the images of a command, which are split across ranks.

    The extractor is tried on two gray images at once, so that an unsuitable one fails early.
    """

    def __init__(self, trainer: Trainer, module: DDPM, extractor: nn.Module) -> None:
        if module.data.image_shape is None:
            raise InputError("SampleMetrics needs a data module with image_shape = (C, H, W).")
        if module.data.standardization is not None:
            raise InputError("SampleMetrics needs data of pixel levels: its extractors do not take real values.")
        self.trainer = trainer
        self.module = module
        self.extractor = extractor.to(module.device).eval().requires_grad_(False)
        self.data: Any = getattr(trainer, "datamodule", None)
        images = torch.full((2, *module.data.image_shape), 128, dtype=torch.uint8, device=module.device)
        for is_turn_of_first_rank in (True, False):  # the first rank of a machine may download the weights for all
            turn = (trainer.local_rank == 0) is is_turn_of_first_rank
            gather_results(trainer, partial(self._call_extractor, images) if turn else lambda: None)
        self.info = ExtractorInfo.of(extractor)

    def generated(self, sampler: Sampler, num_images: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Draws images and returns their features ``[N, D]`` and logits ``[N, K]``, if any, in order, on every rank.

        The features of an image that is not finite are NaN.
        """

        def measure(images: Tensor) -> tuple[Tensor, Tensor | None]:
            finite = torch.isfinite(images).flatten(1).all(1)
            features, logits = extract(self.extractor, to_uint8(images.nan_to_num(), self.module.levels))
            return features.where(finite[:, None], torch.nan).cpu(), None if logits is None else logits.cpu()

        description = f"drawing for fid_{self.info.name}"
        chunks = draw(self.trainer, self.module, num_images, seed, sampler, measure, description)
        logits = [chunk[1] for chunk in chunks if chunk[1] is not None]
        return torch.cat([chunk[0] for chunk in chunks]), torch.cat(logits) if logits else None

    def real(self, cache_dir: Path) -> RealStatistics:
        """Returns the statistics of the images of the data module's ``reference_dataloader()``, on every rank.

        They are cached in `cache_dir` if the data module has a ``fingerprint()``. In a ``fast_dev_run`` they are those
        of a single batch.
        """
        if not isinstance(self.data, HasReference):
            raise InputError(
                "SampleMetrics needs the training images without augmentation: give the data module, "
                f"{type(self.data).__name__}, a method reference_dataloader(), as ImageDataModule has."
            )
        loader = self.data.reference_dataloader()
        if is_fast_dev_run(self.trainer):
            return self._measure(islice(loader, 1))
        if not isinstance(self.data, HasFingerprint):
            return self._measure(loader)
        path, origin, cached = gather_results(self.trainer, lambda: self._load(loader, cache_dir))[0]
        if cached is not None:
            return cached
        every = max(1, len(loader.dataset) // KID_IMAGES)  # type: ignore[arg-type]  # a dataset with a length
        real = self._measure(loader, every)
        if self.trainer.is_global_zero:
            try:
                real.save(path, origin)
            except OSError as error:
                reason = f"{path} is not writable ({error.strerror})"
                rank_zero_warn(f"the statistics of real images are not cached: {reason}.")
        return real

    def _load(self, loader: DataLoader[Any], cache_dir: Path) -> tuple[Path, dict[str, Any], RealStatistics | None]:
        """Returns the file of the statistics, their origin, and the statistics if the file exists; on rank 0."""
        if not self.trainer.is_global_zero:
            return cache_dir, {}, None
        assert isinstance(self.data, HasFingerprint)
        # The first images reveal a module that transforms them in unpack_batch.
        first = self._pixels(next(iter(loader)))
        origin = {
            "data": self.data.fingerprint(),
            "split": "train",
            "image_shape": list(self.module.data.image_shape or ()),
            "levels": self.module.levels,
            "first_images": hashlib.sha256(first.numpy().tobytes()).hexdigest(),
            "extractor": str(self.info),
            "resize": self.info.resize,
        }
        key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()
        path = cache_dir / f"{self.info.name}_{key[:16]}.safetensors"
        return path, origin, RealStatistics.load(path, origin) if path.is_file() else None

    def _call_extractor(self, images: Tensor) -> None:
        with torch.random.fork_rng(devices=[]):  # a network draws its initial weights when it is built
            self.num_features = extract(self.extractor, images)[0].shape[1]

    def _pixels(self, batch: Any) -> Tensor:
        return to_uint8(self.module.unpack_batch(batch)[0], self.module.levels)

    def _measure(self, batches: Iterable[Any], every: int = 1) -> RealStatistics:
        """Returns the statistics of the batches of all ranks; the features of every n-th image are kept for the KID."""

        def measure_share() -> tuple[Tensor, Tensor, int, list[Tensor]]:
            total = torch.zeros(self.num_features, dtype=torch.float64)
            products, count, kept = torch.outer(total, total), 0, []
            for batch in progress(self.trainer, batches, f"measuring the real images for {self.info.name}"):
                features = extract(self.extractor, self._pixels(batch).to(self.module.device))[0].cpu()
                part = RealStatistics.of_features(features)
                total, products, count = total + part.total, products + part.products, count + part.num_images
                kept.append(features[::every])
            return total, products, count, kept

        totals, products, counts, kept = zip(*gather_results(self.trainer, measure_share), strict=True)
        features = torch.cat(interleave(list(kept)))
        return RealStatistics(torch.stack(totals).sum(0), torch.stack(products).sum(0), sum(counts), features)
