"""Feature extractors: the networks in whose features FID, KID and IS compare images.

Any ``nn.Module`` is one that takes uint8 images ``[B, C, H, W]`` with the channels of the data and returns features
``[B, D]``, or a tuple of features and class logits ``[B, K]``, which the IS needs. Its attributes ``name`` (part of the
logged keys) and ``resize`` (part of the protocol) are read where it has them.
"""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

INCEPTION_SHA256 = "6726825d"


class FeatureExtractor(nn.Module, ABC):
    """An extractor whose weights are read at the first call, so that a command that needs none asks for none.

    Attributes:
        name: What the logged keys call it: ``sample/fid_<name>``.
        resize: What it does to the size of an image.
    """

    name: str
    resize: str = "none"

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Module | None = None

    @abstractmethod
    def load(self) -> nn.Module:
        """The network with its weights; it maps uint8 images to ``(features, logits)``."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, D]`` and class logits ``[B, K]`` of uint8 images ``[B, C, H, W]``."""
        if self.network is None:
            self.network = self.load().eval().requires_grad_(False)
        result: tuple[Tensor, Tensor] = self.network.to(images.device)(images)
        return result


@torch.no_grad()
def extract(extractor: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """float32 features ``[B, D]`` and logits ``[B, K]``, if any, of uint8 images, outside autocast.

    Raises:
        ValueError: If the extractor returns anything else.
    """
    with torch.autocast(images.device.type, enabled=False):
        result = extractor(images)
    features, logits = result if isinstance(result, tuple | list) else (result, None)
    if any(x is not None and (x.ndim != 2 or len(x) != len(images)) for x in (features, logits)):
        raise ValueError(
            f"the extractor {type(extractor).__name__} returned {list(features.shape)} for {len(images)} images; it "
            "must return features [B, D], or a tuple of features and logits [B, K]."
        )
    return features.float(), None if logits is None else logits.float()


def name_of(extractor: nn.Module) -> str:
    """What the logged keys call an extractor: its ``name``, or its class in small letters."""
    return str(getattr(extractor, "name", type(extractor).__name__.lower()))


def resize_of(extractor: nn.Module) -> str:
    """What an extractor says that it does to the size of an image."""
    return str(getattr(extractor, "resize", "none stated"))


def identity_of(extractor: nn.Module) -> str:
    """An extractor's name and eight digits of the SHA-256 of its class and weights."""
    digest = hashlib.sha256(f"{type(extractor).__module__}.{type(extractor).__qualname__}".encode())
    for key, value in extractor.state_dict().items():
        digest.update(key.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{name_of(extractor)} ({digest.hexdigest()[:8]})"


class DigitsClassifier(nn.Module):
    """A small convolutional classifier of the 8x8 digits; ``python -m benchmarks.digits_classifier`` trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv_2 = nn.Conv2d(24, 48, 3, padding=1)
        self.conv_3 = nn.Conv2d(48, 48, 3, padding=1)
        self.features = nn.Linear(4 * 48, 64)
        self.classes = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """64 features and the logits of the ten classes, of uint8 images ``[B, 1, 8, 8]``."""
        x = images.float() / 127.5 - 1
        x = F.avg_pool2d(F.relu(self.conv_2(F.relu(self.conv_1(x)))), 2)
        x = F.avg_pool2d(F.relu(self.conv_3(x)), 2).flatten(1)
        features = F.relu(self.features(F.dropout(x, 0.3, self.training)))
        return features, self.classes(F.dropout(features, 0.3, self.training))


class DigitsFeatures(FeatureExtractor):
    """The bundled classifier of scikit-learn's digits, for `DigitsDataModule`: 64 features, ten classes.

    It was trained on the default training split. Its FID is a figure about these digits alone, not to be compared with
    an Inception FID.
    """

    name = "digits"
    weights_path = Path(__file__).parent / "digits_classifier.safetensors"

    def load(self) -> nn.Module:
        """See `FeatureExtractor.load`."""
        classifier = DigitsClassifier()
        classifier.load_state_dict(load_file(self.weights_path))
        return classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureExtractor.forward`.

        Raises:
            ValueError: If the images are not ``[B, 1, 8, 8]``.
        """
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"DigitsFeatures takes the digits, of shape [1, 8, 8], not images of {list(images.shape[1:])}: use "
                "another extractor, such as InceptionFeatures."
            )
        return super().forward(images)


class InceptionFeatures(FeatureExtractor):
    """The Inception-v3 of the literature as torch-fidelity has it: 2,048 features, 1,008 classes.

    Images are resized as TensorFlow 1 did it, without antialiasing. Grey images are repeated to RGB.

    Args:
        weights_path: A file of weights. If None, the published ones from torch's hub directory, downloaded if missing.
        weights_sha256: How the SHA-256 of the file begins, at least eight hexadecimal digits. With another file than
            the published one the name is ``inception_<digits>``, since its figures compare with no others.

    Raises:
        ValueError: If `weights_sha256` is too short; at the first call if the weights are missing and cannot be
            downloaded, or are another file or for another network, or the images have other than 1 or 3 channels.
    """

    resize = "299x299, bilinear as in TensorFlow 1, antialias=False"

    def __init__(self, weights_path: str | None = None, weights_sha256: str = INCEPTION_SHA256) -> None:
        super().__init__()
        if len(weights_sha256) < 8:
            raise ValueError(f"weights_sha256 = {weights_sha256!r} must be at least eight hexadecimal digits.")
        self.weights_path = weights_path
        self.weights_sha256 = weights_sha256
        published = weights_sha256.startswith(INCEPTION_SHA256)
        self.name = "inception" if published else f"inception_{weights_sha256[:8]}"

    def load(self) -> nn.Module:
        """See `FeatureExtractor.load`."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = self._weights_file()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not digest.startswith(self.weights_sha256):
            raise ValueError(
                f"the Inception weights {path} have the SHA-256 {digest[:8]}..., not {self.weights_sha256}: remove the "
                f"file if it is damaged, or set weights_sha256 to {digest[:8]} if it is the one you mean."
            )
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity reads it without this check
            network: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], path)
        except Exception as error:
            raise ValueError(
                f"the Inception weights {path} are not those of torch-fidelity's Inception-v3: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from None
        return network

    def _weights_file(self) -> Path:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        if self.weights_path is not None:
            if not Path(self.weights_path).is_file():
                raise ValueError(f"weights_path = {self.weights_path} of InceptionFeatures: there is no such file.")
            return Path(self.weights_path)
        url = str(URL_INCEPTION_V3)
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256)
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"the Inception weights could not be downloaded ({error}): get {url} elsewhere and put it at "
                    f"{path}, or name it with weights_path of InceptionFeatures."
                ) from None
        return path

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureExtractor.forward`."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"InceptionFeatures takes images of 1 or 3 channels, not {images.shape[1]}.")
        return super().forward(images.expand(-1, 3, -1, -1))
