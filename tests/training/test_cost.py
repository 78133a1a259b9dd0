"""The cost of a fit, as it is logged."""

import logging
import re

import pytest
import torch
from helpers import LabelledNetwork, TinyNetwork, digits, fit, tiny_module

from lit_ddpm import LowResolution, UNet
from lit_ddpm.training.cost import forward_flops, quantity


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 "), (7, "7 "), (1_024_000, "1.02 M"), (999, "999 "), (47.9e9, "47.9 G"), (3e30, "3e+09 Z")],
)
def test_quantities(value, text):
    assert quantity(value) == text


def test_flops_of_a_convolution():
    """Two operations for each of 9 products, at each of 64 positions."""
    module = tiny_module(network=TinyNetwork(num_steps=20))
    assert forward_flops(module) is None  # the image shape is unknown
    module.image_shape = (1, 8, 8)
    assert forward_flops(module) == 2 * 9 * 64


def test_flops_with_attention_labels_and_conditions():
    small = {"width": 8, "num_blocks": 1, "multipliers": [1], "head_channels": 8}
    flops = []
    for levels in ([], [0]):
        network = UNet(**small, attention_levels=levels, num_classes=3, cond_channels=1)
        module = tiny_module(network=network, condition=LowResolution(2))
        module.image_shape = (1, 8, 8)
        flops.append(forward_flops(module))
    # Three blocks attend over 64 positions, each with four 1x1 convolutions and two products of matrices.
    assert flops[1] - flops[0] == 3 * (2 * 64 * 8 * 8 * 4 + 2 * 2 * 64 * 64 * 8)
    network.to(memory_format=torch.channels_last)  # fused attention would not be counted
    assert forward_flops(module) == flops[1]


def test_a_network_with_other_arguments_has_no_flops():
    class Own(TinyNetwork):
        def forward(self, x_t, t, text):
            return super().forward(x_t, t)

    module = tiny_module(network=Own(num_steps=20))
    module.image_shape = (1, 8, 8)
    assert forward_flops(module) is None


def test_a_fit_logs_its_cost_and_its_end(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(module=tiny_module(), data=digits(batch_size=20), max_epochs=2, limit_val_batches=0)
    assert (
        "The fit has 31 parameters, 1.15 kFLOPs for an image in a network call, 124 steps, 2,480 images and "
        in caplog.text
    )
    assert "8.57 MFLOPs in total." in caplog.text
    assert len(re.findall(r"24 more steps take about 0:00:\d\d and end at \d{4}-\d\d-\d\d", caplog.text)) == 1


def test_a_short_fit_has_no_estimate(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(module=tiny_module(network=LabelledNetwork(10)), data=digits(batch_size=256), limit_val_batches=0)
    assert "The fit has" in caplog.text
    assert "more steps take" not in caplog.text
    assert torch.is_grad_enabled()
