"""FID, KID and IS of generated images, the same way in all benchmarks, and the extractors they are computed with."""

import hashlib
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from lit_ddpm.data import DigitsDataModule, ImageTensors, to_float, to_uint8
from lit_ddpm.metrics import DigitsFeatures, RealStatistics, sample_metrics
from lit_ddpm.metrics.features import extract


class ImageMetrics:
    """FID, KID and IS against a fixed set of real images, in the features of one extractor.

    Args:
        extractor: A module from uint8 images to features, or to features and logits.
        real: The real images, uint8 ``[N, C, H, W]``.
    """

    def __init__(self, extractor: nn.Module, real: Tensor) -> None:
        self.extractor = extractor
        self.real = RealStatistics.of_features(self.features(real)[0].cpu())

    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes the features ``[N, D]`` and logits ``[N, K]`` of uint8 images, in batches of 500."""
        features, logits = zip(*(extract(self.extractor, batch) for batch in images.split(500)), strict=True)
        return torch.cat(features), None if logits[0] is None else torch.cat(logits)

    def compare(
        self, features: Tensor, logits: Tensor | None, kid_subsets: int = 100, kid_subset_size: int | None = None
    ) -> dict[str, float]:
        """Computes the metrics from features; a KID subset has all images unless `kid_subset_size` is given."""
        return sample_metrics(self.real, features, logits, kid_subsets, kid_subset_size or len(features), is_splits=1)

    def __call__(self, images: Tensor, kid_subsets: int = 100, kid_subset_size: int | None = None) -> dict[str, float]:
        """Computes ``fid``, ``kid``, ``kid_std`` and ``is`` of uint8 images ``[N, C, H, W]``."""
        return self.compare(*self.features(images), kid_subsets, kid_subset_size)


def digits_as_uint8(split: ImageTensors) -> Tensor:
    """Returns the digits of a split as uint8 images in 0..255, the input of an extractor."""
    return to_uint8(to_float(split.images, DigitsDataModule.levels), DigitsDataModule.levels)


def digits_metrics() -> ImageMetrics:
    """Returns the metrics in the bundled features of the digits, against their training split."""
    return ImageMetrics(DigitsFeatures(), digits_as_uint8(DigitsDataModule().splits()["train"]))


def random_inception(path: Path) -> FeatureExtractorInceptionV3:
    """Writes random Inception-v3 weights to a file and returns the network, since the published ones are a download.

    The weights keep the activations of every layer near one.
    """
    published = mock.patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", return_value={})
    with published, mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    torch.save(network.state_dict(), path)
    return network


def random_inception_settings(path: Path) -> dict[str, str]:
    """Writes random Inception-v3 weights to a file and returns the arguments of `InceptionFeatures` for them."""
    random_inception(path)
    return {"weights_path": str(path), "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
