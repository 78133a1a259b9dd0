"""UNet as UNet2DModel."""

import pytest
import torch
from torch import nn

from lit_ddpm import UNet
from lit_ddpm.pipelines.unet2d import to_unet2d

SETTINGS = [
    {"multipliers": (1,), "num_blocks": 1, "attention_levels": (0,)},
    {"multipliers": (1, 2), "in_channels": 3, "num_classes": 10},
    {"multipliers": (1, 2, 1), "num_blocks": 1, "attention_levels": (), "head_channels": 512, "out_channels": 2},
    {"multipliers": (1, 1), "num_blocks": 1, "head_channels": 32},
]


def random_unet(**settings):
    torch.manual_seed(0)
    network = UNet(width=128, **settings)
    for parameter in network.parameters():  # the last layer of each block starts at zero
        nn.init.normal_(parameter, std=0.05 if parameter.ndim > 1 else 0.1)
    return network.eval()


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_outputs_are_equal_at_every_timestep(settings):
    network = random_unet(**settings)
    unet = to_unet2d(network, (8, 16))
    t = torch.tensor([1, 2, 17, 500, 999, 1000])
    x = torch.randn(len(t), network.in_channels, 8, 16)
    label = None if network.num_classes is None else torch.tensor([0, 1, 2, 3, 9, 10])
    with torch.no_grad():
        ours = network(x, t) if label is None else network(x, t, label=label)
        theirs = unet(x, t - 1, class_labels=label).sample
    assert float(ours.std()) > 0.01
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 * float(ours.std()) + 1e-6)


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"width": 64}, (8, 8), r"width = 64 of UNet has no UNet2DModel: its group norms have \[16, 32\] groups"),
        ({"width": 128, "fourier_features": [3]}, (8, 8), r"fourier_features = \[3\] of UNet .* must be empty"),
        ({"width": 128, "dims": 1}, (8,), r"dims = 1 of UNet .* must be 2"),
        ({"width": 128, "cond_channels": 1}, (8, 8), "cond_channels = 1 of UNet .* must be None"),
        ({"width": 128}, (8, 9), r"image_shape = \[8, 9\] of UNet .* each level must halve it"),
        (
            {"width": 128, "multipliers": [1, 3], "attention_levels": [0, 1], "head_channels": 192},
            (8, 8),
            "head_channels = 192 .* must divide all widths.* trained as lit_ddpm.nn.DiffusersUNet",
        ),
    ],
)
def test_what_has_no_equivalent_is_refused(settings, size, message):
    with pytest.raises(ValueError, match=message):
        to_unet2d(UNet(**settings), size)
