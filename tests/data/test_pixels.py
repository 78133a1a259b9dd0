import pytest
import torch

from lit_ddpm import DiscretizedGaussian
from lit_ddpm.data import to_float, to_uint8


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_to_floats_and_back(levels):
    level = torch.arange(levels, dtype=torch.uint8)
    x = to_float(level, levels)
    assert x.dtype == torch.float32
    assert float(x.min()) == -1
    assert float(x.max()) == 1
    DiscretizedGaussian(levels).check(x)
    picture = to_uint8(x, levels)
    assert torch.equal(picture, (level.float() * 255 / (levels - 1)).round().byte())
    # Generated values near a level become that level; values outside are clipped, never wrapped.
    assert torch.equal(to_uint8(x + 0.4 / (levels - 1), levels), picture)
    assert to_uint8(torch.tensor([-3.0, 1.01, 9.0]), levels).tolist() == [0, 255, 255]


def test_there_are_256_levels_by_default():
    level = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(level), to_float(level, 256))
    assert torch.equal(to_uint8(to_float(level)), level)
    between = torch.linspace(-1, 1, 5001)
    assert torch.equal(to_uint8(between), to_uint8(between, 256))


def test_nonfinite_images_are_refused():
    with pytest.raises(ValueError, match="finite"):
        to_uint8(torch.tensor([0.0, float("nan")]))
