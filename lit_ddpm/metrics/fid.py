"""FID, KID and IS of features, by torchmetrics, in float64; and the statistics of real images, kept in a file.

FID: Heusel et al. 2017. KID: Binkowski et al. 2018. IS: Salimans et al. 2016.
"""

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.image import FrechetInceptionDistance, InceptionScore, KernelInceptionDistance

from lit_ddpm._internal.random import key_to_seed

KID_IMAGES = 10_000
"""About how many real images' features are kept for the KID, evenly spaced over the data."""


@dataclass(frozen=True)
class RealStatistics:
    """What FID and KID need of the real images.

    Attributes:
        total: The sum of the features, float64 ``[D]``.
        products: The sum of their outer products, float64 ``[D, D]``.
        num_images: The number of images in both sums.
        features: The features of some or all of the images, ``[M, D]``.
    """

    total: Tensor
    products: Tensor
    num_images: int
    features: Tensor

    @staticmethod
    def of_features(features: Tensor) -> "RealStatistics":
        """The statistics of features ``[N, D]``."""
        exact = features.double()
        return RealStatistics(exact.sum(0), exact.T @ exact, len(features), features)

    def save(self, path: Path, origin: dict[str, Any]) -> None:
        """Writes a file at once or not at all; `origin` says which images and which extractor this is of."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        tensors = {"total": self.total, "products": self.products, "features": self.features.contiguous()}
        save_file(tensors, partial, {"origin": json.dumps(origin), "num_images": str(self.num_images)})
        partial.replace(path)

    @staticmethod
    def load(path: Path, origin: dict[str, Any]) -> "RealStatistics":
        """Reads a file.

        Raises:
            ValueError: If the file is damaged, or is of other images or another extractor than `origin` says.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            found = json.loads(metadata.get("origin", "{}"))
            stored = RealStatistics(num_images=int(metadata.get("num_images", 0)), **tensors)
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            found, reason = None, f"it cannot be read ({error})"
        if found is not None:
            different = [name for name in {**found, **origin} if found.get(name) != origin.get(name)]
            reason = f"it has another {', '.join(different)}" if different else ""
        if reason:
            raise ValueError(
                f"the statistics of real images in {path} are not of this data and extractor: {reason}; "
                "remove the file, or set another cache_dir."
            )
        return stored


def sample_metrics(
    real: RealStatistics,
    features: Tensor,
    logits: Tensor | None = None,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    is_splits: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """FID, KID and IS of generated images.

    Args:
        real: The statistics of the real images.
        features: The features of the generated images, ``[N, D]``.
        logits: Their class logits, ``[N, K]``; without them there is no IS.
        kid_subsets: The number of subsets that the KID is averaged over.
        kid_subset_size: The images of a subset, at most as many as there are on either side.
        is_splits: The number of parts that the IS is averaged over.
        seed: The seed of subsets and parts; the global random numbers stay as they are.

    Returns:
        ``fid``, ``kid`` and its standard deviation over the subsets ``kid_std``, and ``is``; all NaN if a feature is
        not finite.
    """
    features = features.double().cpu()
    if not bool(torch.isfinite(features).all()):
        return dict.fromkeys(("fid", "kid", "kid_std") + (("is",) if logits is not None else ()), float("nan"))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `.*` will save all extracted features")
        warnings.filterwarnings("ignore", r"std\(\): degrees of freedom")  # the deviation of a single split, not used
        torch.manual_seed(key_to_seed("metrics", seed))
        fid = FrechetInceptionDistance(_Features(features.shape[1]), sync_on_compute=False)
        fid.real_features_sum, fid.real_features_cov_sum = real.total, real.products
        fid.real_features_num_samples = torch.tensor(real.num_images)
        fid.update(features, real=False)
        kid = KernelInceptionDistance(nn.Identity(), kid_subsets, kid_subset_size, sync_on_compute=False)
        kid.update(real.features.double().cpu(), real=True)
        kid.update(features, real=False)
        kid_mean, kid_std = kid.compute()
        values = {"fid": float(fid.compute()), "kid": float(kid_mean), "kid_std": float(kid_std)}
        if logits is not None:
            score = InceptionScore(nn.Identity(), is_splits, sync_on_compute=False)
            score.update(logits.double().cpu())
            values["is"] = float(score.compute()[0])
    return values


class _Features(nn.Identity):
    """Stands for the extractor: the features have been extracted already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
