"""The U-Net of the library diffusers."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_ddpm._internal.config import Configurable, constructor_defaults, constructor_parameters
from lit_ddpm._internal.extras import import_extra

NOT_THEIRS = ("num_classes", "no_label", "options", "time")
"""Arguments of `DiffusersUNet` that a ``UNet2DModel`` does not have."""


class DiffusersUNet(Configurable, nn.Module):
    """A ``UNet2DModel`` of diffusers as a network; needs the extra ``diffusers``.

    The arguments are those of ``UNet2DModel``, except for the classes. Its weights are those of `unet`.

    Args:
        sample_size: Height and width of the images, for pipelines; other sizes work too.
        in_channels: Channels of the images.
        out_channels: Channels of the output: those of the input if None, and twice as many for a learned variance.
        block_out_channels: Channels of each level.
        down_block_types: The encoder's block of each level.
        up_block_types: The decoder's blocks, from the coarsest level to full resolution.
        layers_per_block: Residual blocks of each level of the encoder; the decoder has one more.
        attention_head_dim: Channels of an attention head; all channels if None.
        norm_num_groups: Groups of each group norm.
        dropout: The dropout probability inside each residual block.
        num_classes: The number of classes, or None for a network without labels.
        no_label: Whether there is one more embedding, for "no label"; guidance and label dropout need it.
        options: Further arguments of ``UNet2DModel``.
        time: What it gets as t, see `UNet`.

    Raises:
        ValueError: If diffusers is not installed, or refuses the arguments.
    """

    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_channels: int | None = None,
        block_out_channels: Sequence[int] = (128, 256, 256, 256),
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types: Sequence[str] = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block: int = 2,
        attention_head_dim: int | None = None,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        num_classes: int | None = None,
        no_label: bool = True,
        options: dict[str, Any] | None = None,
        time: Literal["t", "log_snr"] = "t",
    ) -> None:
        super().__init__()
        self.sample_size = sample_size
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.block_out_channels = tuple(block_out_channels)
        self.down_block_types = tuple(down_block_types)
        self.up_block_types = tuple(up_block_types)
        self.layers_per_block = layers_per_block
        self.attention_head_dim = attention_head_dim
        self.norm_num_groups = norm_num_groups
        self.dropout = dropout
        self.num_classes = num_classes
        self.no_label = no_label
        self.options = dict(options or {})
        self.time = time
        own = {name: getattr(self, name) for name in constructor_parameters(DiffusersUNet) if name not in NOT_THEIRS}
        embeddings = None if num_classes is None else num_classes + no_label
        try:
            self.unet: nn.Module = _unet_class()(**own, num_class_embeds=embeddings, **self.options)
        except TypeError as error:  # an unknown option
            raise ValueError(f"options = {self.options} of DiffusersUNet: {error}.") from None

    @classmethod
    def from_unet(cls, unet: nn.Module, no_label: bool = False) -> "DiffusersUNet":
        """Returns the network of a ``UNet2DModel``, whose weights it shares.

        `no_label` states that the last class of the model means "no label".
        """
        config: Any = unet.config
        if (kind := config.get("class_embed_type")) is not None:
            raise ValueError(f"class_embed_type = {kind!r} of the UNet2DModel must be None: labels are numbers.")
        defaults = constructor_defaults(_unet_class())
        given = {name: config[name] for name in defaults if name in config}
        embeddings = given.pop("num_class_embeds", None)
        own = {name: given.pop(name) for name in constructor_parameters(cls) if name in given}
        with torch.device("meta"):
            network = cls(
                **own,
                num_classes=None if embeddings is None else embeddings - no_label,
                no_label=no_label,
                options={name: value for name, value in given.items() if value != defaults[name]},
            )
        network.unet = unet
        return network

    @override
    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Maps ``[B, in_channels, H, W]`` and t ``[B]`` to ``[B, out_channels, H, W]``.

        A `label` is int64 ``[B]`` in ``0..num_classes``, where `num_classes` means "no label", as None does.
        """
        if self.num_classes is not None and label is None:
            if not self.no_label:
                raise ValueError('label is missing: this DiffusersUNet has no embedding for "no label".')
            label = torch.full_like(t, self.num_classes, dtype=torch.int64)
        output: Tensor = self.unet(x_t, t - 1, class_labels=label, return_dict=False)[0]
        return output


def _unet_class() -> Any:
    return import_extra("diffusers", needed_by="DiffusersUNet").UNet2DModel
