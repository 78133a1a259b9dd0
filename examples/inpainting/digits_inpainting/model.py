"""The LightningModule: a `DDPM` with one more method and one more metric."""

from torch import Tensor
from typing_extensions import override

from digits_inpainting.data import condition
from lit_ddpm import DDPM


class InpaintingDDPM(DDPM):
    """A `DDPM` that completes images, and logs its bound for each missing pixel in ``test``."""

    def complete(self, images: Tensor, known: Tensor, seed: int = 0) -> Tensor:
        """Draws the missing pixels of images ``[B, 1, H, W]`` in [-1, 1]; `known` is False where a pixel is missing."""
        return self.sample(len(images), seed, cond=condition(images, known))

    @override
    def on_test_epoch_end(self) -> None:
        data = self.trainer.datamodule
        bits = self.evaluation.last_report.terms["total"].value  # for each of the 64 pixels
        self.log("test/bits_per_missing_pixel", bits * 64 / data.block**2)
