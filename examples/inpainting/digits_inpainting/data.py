"""The digits of scikit-learn, each with a condition: the image without a block of its pixels."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_ddpm.data import DigitsDataModule, ImageTensors, to_float


def condition(images: Tensor, known: Tensor) -> Tensor:
    """Returns the condition of images ``[B, 1, H, W]`` in [-1, 1]: their known pixels and the mask, ``[B, 2, H, W]``.

    Args:
        images: The images; the values of missing pixels do not matter.
        known: The mask, bool ``[B, 1, H, W]``; False where a pixel is missing.
    """
    return torch.cat([images.where(known, 0), known.to(images)], dim=1)


class MaskedDigits(DigitsDataModule):
    """The digits, each without a square block of pixels at a random position that is the same in every epoch.

    Args:
        block: The side of the missing block, in pixels.
        **settings: See `DigitsDataModule`.
    """

    cond_shape = (2, 8, 8)

    def __init__(self, block: int = 4, **settings: Any) -> None:
        super().__init__(**settings)
        if not 1 <= block <= 8:
            raise ValueError(f"block = {block} of MaskedDigits must be 1 to 8.")
        self.block = block

    @override
    def splits(self) -> dict[str, ImageTensors]:
        generator = torch.Generator().manual_seed(self.split_seed)
        masked = {}
        for name, split in super().splits().items():
            known = self._draw_masks(len(split), generator)
            cond = condition(to_float(split.images, self.levels), known)
            masked[name] = ImageTensors(split.images, split.labels, cond)
        return masked

    def _draw_masks(self, count: int, generator: torch.Generator) -> Tensor:
        first = torch.randint(0, 8 - self.block + 1, (2, count, 1), generator=generator)  # row and column
        rows, columns = (torch.arange(8) >= first) & (torch.arange(8) < first + self.block)
        return ~(rows[:, None, :, None] & columns[:, None, None, :])
