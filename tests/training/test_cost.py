"""The cost of a fit, as it is logged."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from helpers import LabelledNetwork, TinyNetwork, digits, fit, tiny_module, trainer

from lit_ddpm import LowResolution, UNet
from lit_ddpm.callbacks import ChannelsLast, Compile
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.training.cost import faster_overlays, forward_flops


def test_flops_of_a_convolution():
    """Two operations for each of 9 products, at each of 64 positions."""
    module = tiny_module(network=TinyNetwork(num_steps=20))
    assert forward_flops(module) is None  # the image shape is unknown
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    assert forward_flops(module) == 2 * 9 * 64


def test_flops_with_attention_labels_and_conditions():
    small = {"width": 8, "num_blocks": 1, "multipliers": [1], "head_channels": 8}
    flops = []
    for levels in ([], [0]):
        network = UNet(**small, attention_levels=levels, num_classes=3, cond_channels=1)
        module = tiny_module(network=network, condition=LowResolution(2))
        module.observe(DataSpec(image_shape=(1, 8, 8)))
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
    module.observe(DataSpec(image_shape=(1, 8, 8)))
    assert forward_flops(module) is None


def test_a_fit_logs_its_cost_and_its_end(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(module=tiny_module(), data=digits(batch_size=20), max_epochs=2, limit_val_batches=0)
    cost = "1.15e+03 FLOPs for an image in a network call, 124 steps, 2,480 images, 8.57e+06 FLOPs in total."
    assert f"The fit has {cost}" in caplog.text
    assert len(re.findall(r"24 more steps take about 0:00:\d\d and end at \d{4}-\d\d-\d\d", caplog.text)) == 1


def test_a_short_fit_has_no_estimate(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(module=tiny_module(network=LabelledNetwork(10)), data=digits(batch_size=256), limit_val_batches=0)
    assert "The fit has" in caplog.text
    assert "more steps take" not in caplog.text
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("capabilities", "size", "callbacks", "precision", "hint"),
    [
        ({"avx512_bf16": True}, 28, [], "32-true", "with --config bf16"),
        ({}, 28, [], "32-true", "with --config channels_last"),
        ({}, 28, [ChannelsLast()], "32-true", None),
        ({"avx512_bf16": True}, 28, [], "bf16-mixed", None),
        ({"avx512_bf16": True}, 8, [], "32-true", None),
    ],
)
def test_a_fit_logs_what_would_be_faster(monkeypatch, caplog, capabilities, size, callbacks, precision, hint):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    run = trainer(max_epochs=1, precision=precision, limit_train_batches=2, limit_val_batches=0, callbacks=callbacks)
    module = tiny_module(network=TinyNetwork(2, num_steps=20))
    module.observe(DataSpec(image_shape=(2, size, size)))
    images = torch.zeros(4, 2, size, size)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run.fit(module, torch.utils.data.DataLoader(images, batch_size=2))
    assert run.precision == precision
    lines = [message for message in caplog.messages if "would be faster" in message]
    assert (lines[0].endswith(hint), len(lines)) == (True, 1) if hint else not lines


@pytest.mark.parametrize(
    ("callbacks", "precision", "overlays"),
    [
        ([], "32-true", ["bf16", "channels_last", "compile"]),
        ([ChannelsLast()], "bf16-mixed", ["compile"]),
        ([ChannelsLast(), Compile()], "32-true", ["bf16"]),
    ],
)
def test_overlays_for_a_gpu(monkeypatch, callbacks, precision, overlays):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    module = tiny_module(network=TinyNetwork(2, num_steps=20))
    for callback in callbacks:
        callback.setup(trainer(), module, "fit")
    assert faster_overlays(SimpleNamespace(strategy=strategy, precision=precision), module) == overlays
