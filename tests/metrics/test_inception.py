from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch_fidelity
from helpers import Malicious, sha256
from torch import nn
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks.common.metrics import random_inception
from lit_ddpm.data import to_uint8
from lit_ddpm.metrics.features import extract
from lit_ddpm.metrics.fid import RealStatistics, sample_metrics
from lit_ddpm.metrics.inception import InceptionFeatures


def pictures(count, seed, channels=3):
    """Smooth random uint8 images that differ between seeds."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 2 - 1
    return to_uint8(nn.functional.interpolate(coarse * (1 + seed / 4), 16, mode="bicubic").clamp(-1, 1))


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Random weights for the architecture of Inception."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    network = random_inception(path)
    # Logits that differ between the images: without the component that all features share.
    common = nn.functional.normalize(network.eval()(pictures(8, seed=5))[0].mean(0), dim=0)
    weight = network.fc.weight.data
    weight.copy_(100 * (weight - (weight @ common)[:, None] * common))
    torch.save(network.state_dict(), path)
    return str(path)


def test_fid_kid_and_is_are_those_of_torch_fidelity(inception_weights, tmp_path):
    sets = {"generated": pictures(12, seed=1), "real": pictures(12, seed=2)}
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            to_pil_image(image).save(tmp_path / name / f"{number:03d}.png")
    expected = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "generated"),
        input2=str(tmp_path / "real"),
        feature_extractor_weights_path=inception_weights,
        fid=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=12,
        isc=True,
        isc_splits=1,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    extractor = InceptionFeatures(inception_weights, sha256(inception_weights)[:8])
    features = {name: extract(extractor, images) for name, images in sets.items()}
    real = RealStatistics.of_features(features["real"][0])
    found = sample_metrics(real, *features["generated"], kid_subsets=1, kid_subset_size=12, is_splits=1)
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert found["is"] == pytest.approx(expected["inception_score_mean"], rel=1e-3)
    assert found["fid"] > 1
    assert found["is"] > 1.2


def test_gray_images_are_repeated_to_rgb(inception_weights):
    extractor = InceptionFeatures(inception_weights, sha256(inception_weights)[:8])
    gray = pictures(2, seed=3, channels=1)
    assert torch.equal(extractor(gray)[0], extractor(gray.repeat(1, 3, 1, 1))[0])
    assert extractor(gray)[0].shape == (2, 2048)
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        extractor(pictures(2, seed=3, channels=2))


def test_other_weights_need_their_sha256(inception_weights):
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    digits_of_file = sha256(inception_weights)[:8]
    with pytest.raises(ValueError, match=rf"SHA-256 {digits_of_file}.*, not 6726825d.*set weights_sha256 to"):
        InceptionFeatures(inception_weights)(image)
    assert InceptionFeatures().name == "inception"
    assert InceptionFeatures(inception_weights, digits_of_file).name == f"inception_{digits_of_file}"
    with pytest.raises(ValueError, match="weights_sha256 = 'abc' must be at least eight"):
        InceptionFeatures(inception_weights, "abc")
    with pytest.raises(ValueError, match=r"weights_path = nowhere\.pth of InceptionFeatures does not exist"):
        InceptionFeatures("nowhere.pth")(image)


@pytest.mark.parametrize("content", [{"fc.weight": torch.zeros(10, 2048)}, {"evil": Malicious()}, [1, 2]])
def test_a_file_of_other_weights_is_refused(content):
    torch.save(content, "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth are not those of torch-fidelity's Inception-v3: "):
        InceptionFeatures("other.pth", sha256("other.pth"))(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert not Path("evil_was_here").exists()


@pytest.mark.parametrize("exists", [False, True])
def test_the_offline_message_names_file_and_directory(monkeypatch, exists):
    if exists:
        (Path(torch.hub.get_dir()) / "checkpoints").mkdir(parents=True)

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ValueError, match=r"no network.*weights-inception-2015-12-05-6726825d.pth.*put it at .*weights_"
    ):
        InceptionFeatures()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_damaged_download_is_not_used(monkeypatch):
    path = Path(torch.hub.get_dir()) / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    with pytest.raises(ValueError, match="remove the file if it is damaged"):
        InceptionFeatures()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
