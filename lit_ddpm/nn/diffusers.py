"""The U-Net of the library diffusers."""

from typing import Any, Literal

import torch
from torch import nn

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import constructor_defaults
from lit_ddpm._internal.extras import import_extra
from lit_ddpm.nn.adapter import NetworkAdapter

DEFAULTS: dict[str, Any] = {
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
}
"""The options of a `DiffusersUNet` that are not the defaults of a ``UNet2DModel``."""


class DiffusersUNet(NetworkAdapter):
    """A ``UNet2DModel`` of diffusers, which is its `network`; needs the extra ``diffusers``.

    Args:
        options: Arguments of ``UNet2DModel`` other than ``num_class_embeds``. There are as many output channels as
            input channels, unless ``out_channels`` is given; a learned variance needs twice as many.
        num_classes: The number of classes, or None for a network without labels.
        no_label: Whether there is one more embedding, for "no label"; guidance and label dropout need it.
        time: What it gets as t, see `UNet`.

    Raises:
        ValueError: If diffusers is not installed, or refuses the options.
    """

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        num_classes: int | None = None,
        no_label: bool = True,
        time: Literal["t", "log_snr"] = "t",
    ) -> None:
        options = dict(options or {})
        given = DEFAULTS | {"out_channels": options.get("in_channels", 3)} | options
        try:
            unet = _unet_class()(**given, num_class_embeds=None if num_classes is None else num_classes + no_label)
        except (TypeError, ValueError) as error:  # refused options
            raise InputError(f"options = {options} of DiffusersUNet: {error}.") from None
        arguments = {"return_dict": False}
        super().__init__(unet, -1, 1.0, 0, "class_labels", num_classes, arguments, no_label, time)
        self.options = options
        self.in_channels: int = unet.config.in_channels
        self.out_channels: int = unet.config.out_channels

    @classmethod
    def from_unet(cls, unet: nn.Module, no_label: bool = False) -> "DiffusersUNet":
        """Returns the network of a ``UNet2DModel``, whose weights it shares.

        `no_label` states that the last class of the model means "no label".
        """
        config: Any = unet.config
        if (kind := config.get("class_embed_type")) is not None:
            raise InputError(f"class_embed_type = {kind!r} of the UNet2DModel must be None: labels are numbers.")
        defaults = constructor_defaults(_unet_class()) | DEFAULTS
        options = {name: config[name] for name, default in defaults.items() if config.get(name, default) != default}
        embeddings = options.pop("num_class_embeds", None)
        with torch.device("meta"):
            network = cls(options, None if embeddings is None else embeddings - no_label, no_label)
        network.network.load_state_dict(unet.state_dict(keep_vars=True), assign=True)
        return network.train(unet.training)


def _unet_class() -> Any:
    return import_extra("diffusers", needed_by="DiffusersUNet").UNet2DModel
