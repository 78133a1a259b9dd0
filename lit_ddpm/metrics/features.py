"""Feature extractors: the networks in whose features FID, KID and IS compare images.

Any ``nn.Module`` is one that takes uint8 images ``[B, C, H, W]`` with the channels of the data and returns features
``[B, D]``, or a tuple of features and class logits ``[B, K]``, which the IS needs. Its attributes ``name`` (part of the
logged keys) and ``resize`` (part of the protocol) are read where it has them.
"""

import hashlib
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


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
