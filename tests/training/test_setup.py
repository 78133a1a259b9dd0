import pytest
import torch
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


@pytest.mark.parametrize(
    ("capabilities", "size", "settings", "precision", "hint"),
    [
        ({"avx512_bf16": True}, 28, {}, "32-true", "with --config bf16"),
        ({}, 28, {}, "32-true", "with --config channels_last"),
        ({}, 28, {"channels_last": True}, "32-true", None),
        ({"avx512_bf16": True}, 28, {}, "bf16-mixed", None),
        ({"avx512_bf16": True}, 8, {}, "32-true", None),
    ],
)
def test_a_fit_logs_what_would_be_faster(monkeypatch, caplog, capabilities, size, settings, precision, hint):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    run = trainer(max_epochs=1, precision=precision, limit_train_batches=2, limit_val_batches=0)
    module = tiny_module(**settings)
    module.image_shape = (1, size, size)
    images = torch.zeros(4, 1, size, size)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run.fit(module, torch.utils.data.DataLoader(images, batch_size=2))
    assert run.precision == precision
    lines = [message for message in caplog.messages if "would be faster" in message]
    assert (lines[0].endswith(hint), len(lines)) == (True, 1) if hint else not lines
