import hashlib
import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch_fidelity
from helpers import digits
from torch import nn
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks import digits_classifier
from benchmarks.memory import random_inception
from lit_ddpm.data import to_float, to_uint8
from lit_ddpm.metrics.digits import DigitsFeatures
from lit_ddpm.metrics.features import extract, identity_of, name_of, resize_of
from lit_ddpm.metrics.fid import RealStatistics, sample_metrics
from lit_ddpm.metrics.inception import InceptionFeatures


def pictures(count, seed, channels=3):
    """Smooth random uint8 images, which no two sets share."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 2 - 1
    return to_uint8(nn.functional.interpolate(coarse * (1 + seed / 4), 16, mode="bicubic").clamp(-1, 1))


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Weights of Inception's architecture, random."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    network = random_inception(path)
    # Classes that tell the pictures apart: not by what all of them have in common.
    common = nn.functional.normalize(network.eval()(pictures(8, seed=5))[0].mean(0), dim=0)
    weight = network.fc.weight.data
    weight.copy_(100 * (weight - (weight @ common)[:, None] * common))
    torch.save(network.state_dict(), path)
    return str(path)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# --- the bundled one


def test_the_bundled_classifier_knows_the_digits_it_has_not_seen():
    split = digits().splits()["test"]
    _, logits = DigitsFeatures()(to_uint8(to_float(split.images, 17), 17))
    assert (logits.argmax(1) == split.labels).float().mean() >= 0.97
    assert DigitsFeatures.weights_path.stat().st_size <= 300 * 1024


def test_the_script_that_trained_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(digits_classifier, "EPOCHS", 2)
    monkeypatch.setattr("sys.argv", ["digits_classifier"])
    before = sha256(DigitsFeatures.weights_path)
    digits_classifier.main()
    printed = capsys.readouterr().out
    for line in ("accuracy on test", "KiB of weights"):
        assert line in printed
    assert sha256(DigitsFeatures.weights_path) == before


def test_other_images_than_digits_are_refused():
    with pytest.raises(ValueError, match=r"shape \[1, 8, 8\], not images of \[3, 32, 32\]"):
        DigitsFeatures()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_weights_are_read_at_the_first_call_and_the_constructor_draws_no_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    extractors = [DigitsFeatures(), InceptionFeatures("nowhere.pth")]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(extractor.network is None for extractor in extractors)


# --- any module


class Mean(nn.Module):
    def forward(self, images):
        return images.to(torch.bfloat16).mean((2, 3))


def test_any_module_is_an_extractor():
    features, logits = extract(Mean(), torch.full((5, 3, 8, 8), 7, dtype=torch.uint8))
    assert features.dtype == torch.float32
    assert features.tolist() == [[7.0] * 3] * 5
    assert logits is None
    assert (name_of(Mean()), resize_of(Mean())) == ("mean", "none stated")


def test_extraction_is_outside_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = extract(DigitsFeatures(), torch.full((2, 1, 8, 8), 77, dtype=torch.uint8))
    assert torch.equal(features, extract(DigitsFeatures(), torch.full((2, 1, 8, 8), 77, dtype=torch.uint8))[0])


def test_a_module_that_returns_no_features_is_refused():
    with pytest.raises(ValueError, match=r"Identity returned \[2, 1, 8, 8\] for 2 images; it must return features"):
        extract(nn.Identity(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_the_identity_tells_weights_apart():
    torch.manual_seed(0)
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    assert identity_of(first) != identity_of(second)
    second.load_state_dict(first.state_dict())
    assert identity_of(first) == identity_of(second)
    assert identity_of(first).startswith("linear (")


# --- Inception


def test_fid_kid_and_is_are_those_of_torch_fidelity(inception_weights, tmp_path):
    sets = {"generated": pictures(40, seed=1), "real": pictures(40, seed=2)}
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
        kid_subset_size=40,
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
    found = sample_metrics(real, *features["generated"], kid_subsets=1, kid_subset_size=40, is_splits=1)
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert found["is"] == pytest.approx(expected["inception_score_mean"], rel=1e-3)
    assert found["fid"] > 1
    assert found["is"] > 1.2


def test_grey_images_are_repeated_to_colour_and_two_channels_refused(inception_weights):
    extractor = InceptionFeatures(inception_weights, sha256(inception_weights)[:8])
    grey = pictures(2, seed=3, channels=1)
    assert torch.equal(extractor(grey)[0], extractor(grey.repeat(1, 3, 1, 1))[0])
    assert extractor(grey)[0].shape == (2, 2048)
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        extractor(pictures(2, seed=3, channels=2))


def test_other_weights_than_the_published_ones_must_be_meant(inception_weights):
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    digits_of_file = sha256(inception_weights)[:8]
    with pytest.raises(ValueError, match=rf"SHA-256 {digits_of_file}.*, not 6726825d.*set weights_sha256 to"):
        InceptionFeatures(inception_weights)(image)
    assert InceptionFeatures().name == "inception"
    assert InceptionFeatures(inception_weights, digits_of_file).name == f"inception_{digits_of_file}"
    with pytest.raises(ValueError, match="weights_sha256 = 'abc' must be at least eight"):
        InceptionFeatures(inception_weights, "abc")
    with pytest.raises(ValueError, match=r"weights_path = nowhere\.pth of InceptionFeatures: there is no such file"):
        InceptionFeatures("nowhere.pth")(image)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil_was_here",))


@pytest.mark.parametrize("content", [{"fc.weight": torch.zeros(10, 2048)}, {"evil": Evil()}, [1, 2]])
def test_a_file_that_is_no_inception_is_refused(content):
    torch.save(content, "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth are not those of torch-fidelity's Inception-v3: "):
        InceptionFeatures("other.pth", sha256("other.pth"))(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert not Path("evil_was_here").exists()


def test_without_internet_the_message_says_what_to_get_and_where_to_put_it(monkeypatch):
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
