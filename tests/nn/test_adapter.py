"""Networks with other interfaces."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_ddpm import DDPM, Configurable, Denoiser, Guidance, LogSNRSchedule, VParametrization
from lit_ddpm._internal.config import as_config
from lit_ddpm.nn import NetworkAdapter


class Foreign(Configurable, nn.Module):
    """Records its arguments and returns the images in one of several forms."""

    def __init__(self, form: str = "tensor"):
        super().__init__()
        self.form = form

    def forward(self, x, time, **arguments):
        self.time, self.arguments = time, arguments
        return {
            "tensor": lambda: x,
            "attribute": lambda: SimpleNamespace(sample=x),
            "key": lambda: {"sample": x},
            "tuple": lambda: (None, x),
        }[self.form]()


@pytest.mark.parametrize(
    ("form", "output"), [("tensor", None), ("attribute", "sample"), ("key", "sample"), ("tuple", 1)]
)
def test_the_output_in_every_form(form, output):
    network = Foreign(form)
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([1, 5, 10])
    assert NetworkAdapter(network, output=output)(x, t) is x
    assert network.time is not None
    assert not network.arguments


def test_time_labels_and_further_arguments():
    network = Foreign()
    adapter = NetworkAdapter(network, time_offset=-1, label="y", num_classes=7, arguments={"training": False})
    x, t, label = torch.randn(3, 1, 4, 4), torch.tensor([1, 5, 10]), torch.tensor([0, 6, 7])
    adapter(x, t, label=label, cond=x)
    assert network.time.tolist() == [0, 4, 9]
    assert network.time.dtype == torch.int64
    assert network.arguments == {"training": False, "y": label, "cond": x}
    NetworkAdapter(network, time_scale=0.1)(x, t)
    torch.testing.assert_close(network.time, torch.tensor([0.1, 0.5, 1.0]))
    model = DDPM(adapter, guidance=Guidance(dropout=0.1))
    assert (model.denoiser.network_spec.num_classes, model.denoiser.network_spec.cond_channels) == (7, None)


def test_a_missing_label_is_that_of_no_label():
    network = Foreign()
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([1, 5, 10])
    NetworkAdapter(network, label="y", num_classes=7)(x, t)
    assert network.arguments["y"].tolist() == [7, 7, 7]
    without = NetworkAdapter(network, num_classes=7, no_label=False)
    assert DDPM(without).denoiser.network_spec.no_label is None
    with pytest.raises(ValueError, match='label is missing: this NetworkAdapter has no embedding for "no label"'):
        without(x, t)
    NetworkAdapter(network)(x, t)
    assert not network.arguments


def test_an_adapted_network_gets_log_snr():
    network, schedule = Foreign(), LogSNRSchedule(20)
    adapter = NetworkAdapter(network, time_scale=1e-3, time="log_snr")
    Denoiser(adapter, schedule, VParametrization())(torch.randn(2, 1, 4, 4), torch.tensor([3, 20]))
    expected = torch.sigmoid(-schedule.log_snr(torch.tensor([3, 20])) / 4).float()
    torch.testing.assert_close(network.time, expected)
    assert as_config(adapter)["init_args"]["time"] == "log_snr"


def test_a_checkpoint_names_both_networks():
    config = as_config(NetworkAdapter(Foreign("key"), time_offset=-1, output="sample"))
    assert config["class_path"] == "lit_ddpm.nn.NetworkAdapter"
    assert config["init_args"]["network"]["init_args"] == {"form": "key"}
