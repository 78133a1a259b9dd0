from hashlib import sha256

import pytest
import torch
from torch import nn

from lit_ddpm.metrics.digits_features import DigitsFeatures
from lit_ddpm.metrics.features import ExtractorInfo, extract, fingerprint_of
from lit_ddpm.metrics.inception import InceptionFeatures


class Mean(nn.Module):
    def forward(self, images):
        return images.to(torch.bfloat16).mean((2, 3))


def test_weights_are_loaded_at_the_first_call():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    extractors = [DigitsFeatures(), InceptionFeatures("nowhere.pth")]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(extractor.network is None for extractor in extractors)


def test_any_module_is_an_extractor():
    features, logits = extract(Mean(), torch.full((5, 3, 8, 8), 7, dtype=torch.uint8))
    assert features.dtype == torch.float32
    assert features.tolist() == [[7.0] * 3] * 5
    assert logits is None
    info = ExtractorInfo.of(Mean())
    assert (info.name, info.resize) == ("mean", "none stated")


def test_extraction_is_outside_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = extract(DigitsFeatures(), torch.full((2, 1, 8, 8), 77, dtype=torch.uint8))
    assert torch.equal(features, extract(DigitsFeatures(), torch.full((2, 1, 8, 8), 77, dtype=torch.uint8))[0])


def test_the_extractor_is_called_outside_autocast():
    class Recording(Mean):
        def forward(self, images):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(images)

    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        extract(Recording(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert seen == [False]


def test_loaded_weights_are_in_evaluation_mode_and_fixed():
    extractor = DigitsFeatures()
    extract(extractor, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert not extractor.network.training
    assert not any(p.requires_grad for p in extractor.network.parameters())


def test_a_fingerprint_is_eight_digits_of_class_and_weights():
    assert fingerprint_of(DigitsFeatures()) == sha256(b"lit_ddpm.metrics.DigitsFeatures").hexdigest()[:8]

    class Other(Mean):
        pass

    class Another(Mean):
        pass

    assert fingerprint_of(Other()) != fingerprint_of(Another())


def test_a_module_that_returns_no_features_is_refused():
    with pytest.raises(ValueError, match=r"Identity returned \[2, 1, 8, 8\] for 2 images; it must return features"):
        extract(nn.Identity(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_the_identity_depends_on_the_weights():
    torch.manual_seed(0)
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    assert fingerprint_of(first) != fingerprint_of(second)
    second.load_state_dict(first.state_dict())
    assert fingerprint_of(first) == fingerprint_of(second)
    assert str(ExtractorInfo.of(first)) == f"linear ({fingerprint_of(first)})"
