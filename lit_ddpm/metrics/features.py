"""Feature extractors: the networks in whose features FID, KID and IS compare images.

An extractor is any ``nn.Module`` that maps uint8 images ``[B, C, H, W]`` with the channels of the data to features
``[B, D]``, or to a tuple of features and class logits ``[B, K]``, which the IS needs. It may also have the attributes
`ExtractorInfo.name` and `ExtractorInfo.resize`.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import public_path


class FeatureExtractor(nn.Module, ABC):
    """An extractor that loads its weights at the first call."""

    name: str  # in the keys of the logs: ``sample/fid_<name>``
    resize: str = "none"  # how it resizes the images, for the protocol

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Module | None = None

    @abstractmethod
    def load(self) -> nn.Module:
        """Returns the network with its weights; it maps uint8 images to ``(features, logits)``."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features ``[B, D]`` and class logits ``[B, K]`` of uint8 images ``[B, C, H, W]``."""
        if self.network is None:
            self.network = self.load().eval().requires_grad_(False)
        result: tuple[Tensor, Tensor] = self.network.to(images.device)(images)
        return result


@dataclass(frozen=True)
class ExtractorInfo:
    """The identity of an extractor, for the protocol of its metrics."""

    name: str
    resize: str
    fingerprint: str

    @classmethod
    def of(cls, extractor: nn.Module) -> "ExtractorInfo":
        """Reads an extractor; without a ``name`` it is named after its class."""
        name = getattr(extractor, "name", type(extractor).__name__.lower())
        return cls(str(name), str(getattr(extractor, "resize", "none stated")), fingerprint_of(extractor))

    @override
    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint})"


def fingerprint_of(module: nn.Module) -> str:
    """Returns eight digits of the SHA-256 of a module's class and weights."""
    kind = type(module)
    digest = hashlib.sha256((public_path(kind) or f"{kind.__module__}.{kind.__qualname__}").encode())
    for key, value in module.state_dict().items():
        digest.update(key.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def extract(extractor: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns float32 features ``[B, D]`` and logits ``[B, K]``, if any, of uint8 images, computed outside autocast."""
    with torch.autocast(images.device.type, enabled=False):
        result = extractor(images)
    features, logits = result if isinstance(result, tuple | list) else (result, None)
    if any(x is not None and (x.ndim != 2 or len(x) != len(images)) for x in (features, logits)):
        raise InputError(
            f"the extractor {type(extractor).__name__} returned {list(features.shape)} for {len(images)} images; it "
            "must return features [B, D], or a tuple of features and logits [B, K]."
        )
    return features.float(), None if logits is None else logits.float()
