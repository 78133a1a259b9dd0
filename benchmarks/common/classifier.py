"""A classifier of gray images, for features in which a FID needs few images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_ddpm.data import to_float


class Classifier(nn.Module):
    """A small classifier of uint8 digits ``[N, 1, S, S]`` that returns 64 features and the logits."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (image_size // 8) ** 2, 64), nn.ReLU())
        self.classes = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features ``[N, 64]`` and logits ``[N, 10]``."""
        features = self.features(to_float(images, 256))
        return features, self.classes(features)


def train_classifier(images: Tensor, labels: Tensor) -> Classifier:
    """Trains the classifier."""
    torch.manual_seed(0)
    classifier = Classifier(images.shape[-1])
    optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3)
    for _ in range(4):
        for rows in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(classifier(images[rows])[1], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier.eval()
