"""FID, KID and IS of features, by torchmetrics, in float64; and cached statistics of the real images.

FID: Heusel et al. 2017. KID: Binkowski et al. 2018. IS: Salimans et al. 2016.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.image import FrechetInceptionDistance, InceptionScore, KernelInceptionDistance

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import atomic_write
from lit_ddpm._internal.random import key_to_seed

KID_IMAGES = 10_000
"""The approximate number of real images whose features are kept for the KID, evenly spaced over the data."""


@dataclass(frozen=True)
class RealStatistics:
    """The statistics of the real images: sums over all of them for the FID, features for the KID."""

    total: Tensor  # the sum of the features, float64 [D]
    products: Tensor  # the sum of their outer products, float64 [D, D]
    num_images: int  # in both sums
    features: Tensor  # of some or all of the images, [M, D]

    @staticmethod
    def of_features(features: Tensor) -> "RealStatistics":
        """Computes the statistics of features ``[N, D]``."""
        exact = features.double()
        return RealStatistics(exact.sum(0), exact.T @ exact, len(features), features)

    def save(self, path: Path, origin: dict[str, Any]) -> None:
        """Writes a file atomically; `origin` identifies the images and the extractor."""
        tensors = {"total": self.total, "products": self.products, "features": self.features.contiguous()}
        with atomic_write(path) as partial:
            save_file(tensors, partial, {"origin": json.dumps(origin), "num_images": str(self.num_images)})

    @staticmethod
    def load(path: Path, origin: dict[str, Any]) -> "RealStatistics":
        """Reads a file; raises a ValueError if it is damaged or has another `origin`."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("total", "products", "features")}
            found = json.loads(metadata.get("origin", "{}"))
            stored = RealStatistics(num_images=int(metadata.get("num_images", 0)), **tensors)
            different = [name for name in {**found, **origin} if found.get(name) != origin.get(name)]
            reason = f"it has another {', '.join(different)}" if different else None
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            reason = f"it cannot be read ({error})"
        if reason is not None:
            raise InputError(
                f"the statistics of real images in {path} do not belong to this data and extractor: {reason}; "
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
    fid_halves: int = 0,
) -> dict[str, float]:
    """Computes the metrics of generated images from their features ``[N, D]`` and class logits ``[N, K]``.

    Returns ``fid``, ``kid``, its standard deviation over the subsets ``kid_std`` and, with logits, ``is``. All are NaN
    if a feature is not finite. The FID is also NaN if the covariances are too degenerate, as those of a few images can
    be. A subset of the KID has `kid_subset_size` images, at most the number of real and of generated images. Subsets
    and splits depend on `seed` only, and the global generators are not changed.

    `fid_halves` of 2 or more adds ``fid_se`` and ``fid_infinite``, from the FIDs of so many random halves of the
    images: the standard error of the FID, and its extrapolation to infinitely many generated images. A half drawn
    without replacement varies about the mean over halves as the whole does about its expectation. The bias of the FID
    is in proportion to 1/N (Chong and Forsyth 2020), so the extrapolation is twice the FID minus the mean over halves.
    Both are NaN for fewer than four images.
    """
    features = features.cpu().double()
    if not bool(torch.isfinite(features).all()):
        halves = ("fid_se", "fid_infinite") if fid_halves >= 2 else ()
        names = ("fid", "kid", "kid_std", *(("is",) if logits is not None else ()), *halves)
        return dict.fromkeys(names, float("nan"))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `.*` will save all extracted features")
        warnings.filterwarnings("ignore", r"std\(\): degrees of freedom")  # the IS of a single split has no deviation
        torch.manual_seed(key_to_seed("metrics", seed))
        kid = KernelInceptionDistance(nn.Identity(), kid_subsets, kid_subset_size, sync_on_compute=False)
        kid.update(real.features.cpu().double(), real=True)
        kid.update(features, real=False)
        kid_mean, kid_std = kid.compute()
        values = {"fid": _fid(real, features), "kid": float(kid_mean), "kid_std": float(kid_std)}
        if logits is not None:
            score = InceptionScore(nn.Identity(), is_splits, sync_on_compute=False)
            score.update(logits.cpu().double())
            values["is"] = float(score.compute()[0])
        if fid_halves >= 2:
            orders = (torch.randperm(len(features)) for _ in range(fid_halves if len(features) >= 4 else 0))
            fids = torch.tensor([_fid(real, features[order[: len(order) // 2]]) for order in orders] or [torch.nan] * 2)
            values |= {"fid_se": float(fids.std()), "fid_infinite": 2 * values["fid"] - float(fids.mean())}
    return values


def _fid(real: RealStatistics, features: Tensor) -> float:
    """Returns the FID, or NaN if the covariances are too degenerate for its matrix square root."""
    fid = FrechetInceptionDistance(_Features(features.shape[1]), sync_on_compute=False)
    fid.real_features_sum, fid.real_features_cov_sum = real.total, real.products
    fid.real_features_num_samples = torch.tensor(real.num_images)
    fid.update(features, real=False)
    try:
        return float(fid.compute())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not export it explicitly
        return float("nan")


class _Features(nn.Identity):
    """A stand-in for the extractor, since the features are extracted already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
