import pytest
import torch

from lit_ddpm import LowResolution


@pytest.mark.parametrize(
    ("size", "factor", "expected"), [((8,), 2, (4,)), ((8, 6), 2, (4, 3)), ((6, 9, 3), 3, (2, 3, 1))]
)
def test_low_resolution_is_the_mean_of_blocks(size, factor, expected):
    x = torch.randn(2, 3, *size)
    low = LowResolution(factor)(x)
    assert low.shape == (2, 3, *expected)
    first = x[(..., *[slice(0, factor)] * len(size))]
    torch.testing.assert_close(low[(..., *[0] * len(size))], first.flatten(2).mean(2))


def test_sizes_that_are_not_a_multiple():
    assert LowResolution(3)(torch.randn(1, 1, 28, 28)).shape == (1, 1, 9, 9)


def test_bad_factors_are_refused():
    with pytest.raises(ValueError, match="factor = 1 of LowResolution must be at least 2"):
        LowResolution(1)
    with pytest.raises(ValueError, match=r"factor = 9 of LowResolution is too large for images of \[1, 8, 8\]"):
        LowResolution(9)(torch.randn(2, 1, 8, 8))
    with pytest.raises(ValueError, match="is too large for images of"):
        LowResolution(2)(torch.randn(2, 3))
