import pytest
from helpers import Recorder, digits, tiny_module, trainer

from lit_ddpm import DiscretizedGaussian, UNet


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": DiscretizedGaussian(256)}, "decoder has levels = 256 .*DigitsDataModule have levels = 17"),
        ({"network": UNet(in_channels=3)}, r"in_channels = 3 of UNet .* image_shape = \[1, 8, 8\]"),
        ({"network": UNet(out_channels=2)}, "out_channels = 2 of UNet .*VParametrization with variance='posterior'"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_training(settings, message):
    recorder = Recorder()
    with pytest.raises(ValueError, match=message):
        trainer(callbacks=recorder).fit(tiny_module(**settings), digits())
    assert recorder.losses == []
