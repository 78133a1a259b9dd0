"""The bundled classifier of the digits as a feature extractor."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm.metrics.features import FeatureExtractor


class DigitsClassifier(nn.Module):
    """A small convolutional classifier of the 8x8 digits; ``python -m benchmarks digits_classifier`` trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv_2 = nn.Conv2d(24, 48, 3, padding=1)
        self.conv_3 = nn.Conv2d(48, 48, 3, padding=1)
        self.features = nn.Linear(4 * 48, 64)
        self.classes = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns 64 features and the logits of the ten classes for uint8 images ``[B, 1, 8, 8]``."""
        x = images.float() / 127.5 - 1
        x = F.avg_pool2d(F.relu(self.conv_2(F.relu(self.conv_1(x)))), 2)
        x = F.avg_pool2d(F.relu(self.conv_3(x)), 2).flatten(1)
        features = F.relu(self.features(F.dropout(x, 0.3, self.training)))
        return features, self.classes(F.dropout(features, 0.3, self.training))


class DigitsFeatures(FeatureExtractor):
    """The bundled classifier of scikit-learn's digits, for `DigitsDataModule`: 64 features, ten classes.

    It was trained on the default training split. Its FID is not comparable with an Inception FID.
    """

    name = "digits"
    weights_path = Path(__file__).parent / "digits_classifier.safetensors"

    @override
    def load(self) -> nn.Module:
        classifier = DigitsClassifier()
        classifier.load_state_dict(load_file(self.weights_path))
        return classifier

    @override
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1:] != (1, 8, 8):
            raise InputError(
                f"DigitsFeatures takes the digits, of shape [1, 8, 8], not images of {list(images.shape[1:])}: use "
                "another extractor, such as InceptionFeatures."
            )
        return super().forward(images)
