"""The Inception-v3 of the literature as a feature extractor."""

from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import sha256_of
from lit_ddpm.metrics.features import FeatureExtractor

INCEPTION_SHA256 = "6726825d"


class InceptionFeatures(FeatureExtractor):
    """The Inception-v3 of the literature in torch-fidelity's implementation: 2,048 features, 1,008 classes.

    Images are resized as in TensorFlow 1, without antialiasing. One-channel images are repeated to RGB.

    Args:
        weights_path: A weights file. If None, the published one from torch's hub directory, downloaded if missing.
        weights_sha256: The first digits of the SHA-256 of the file, at least eight. With another file than the
            published one the name is ``inception_<digits>``, since its metrics are not comparable with others.

    Raises:
        ValueError: At the first call, if the weights are missing and cannot be downloaded, have another SHA-256 or do
            not fit the network.
    """

    resize = "299x299, bilinear as in TensorFlow 1, antialias=False"

    def __init__(self, weights_path: str | None = None, weights_sha256: str = INCEPTION_SHA256) -> None:
        super().__init__()
        if len(weights_sha256) < 8:
            raise InputError(f"weights_sha256 = {weights_sha256!r} must be at least eight hexadecimal digits.")
        self.weights_path = weights_path
        self.weights_sha256 = weights_sha256
        published = weights_sha256.startswith(INCEPTION_SHA256)
        self.name = "inception" if published else f"inception_{weights_sha256[:8]}"

    @override
    def load(self) -> nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = _published_weights() if self.weights_path is None else Path(self.weights_path)
        if not path.is_file():
            raise InputError(f"weights_path = {path} of InceptionFeatures does not exist.")
        digest = sha256_of(path)
        if not digest.startswith(self.weights_sha256):
            raise InputError(
                f"the Inception weights {path} have the SHA-256 {digest[:8]}..., not {self.weights_sha256}: remove the "
                f"file if it is damaged, or set weights_sha256 to {digest[:8]} to use it."
            )
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity reads it without this check
            network: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], path)
        except Exception as error:
            raise InputError(
                f"the Inception weights {path} are not those of torch-fidelity's Inception-v3: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from None
        return network

    @override
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1] not in (1, 3):
            raise InputError(f"InceptionFeatures takes images of 1 or 3 channels, not {images.shape[1]}.")
        return super().forward(images.expand(-1, 3, -1, -1))


def _published_weights() -> Path:
    """Returns the file in torch's hub directory, and downloads it if it is missing."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    url = str(URL_INCEPTION_V3)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"the Inception weights could not be downloaded ({error}): download {url} elsewhere and put it at "
                f"{path}, or set weights_path of InceptionFeatures."
            ) from None
    return path
