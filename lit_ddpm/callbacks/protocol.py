"""The protocol of sample metrics: everything that a FID depends on."""

from dataclasses import dataclass

from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging

from lit_ddpm.training.module import DDPM


@dataclass(frozen=True)
class MetricsProtocol:
    """How FID, KID and IS are measured; values of different protocols are not comparable.

    Attributes:
        extractor: The extractor's name and the first digits of the SHA-256 of its class and weights.
        resize: The extractor's resizing of images.
        num_generated: The number of generated images.
        num_real: The number of real images.
        real: The source of the real images.
        sampler: The class of the sampler.
        num_steps: Reverse steps for an image.
        guidance: The scale of classifier-free guidance; 1 is none.
        weights: ``"averaged"`` or ``"raw"``.
        precision: The Trainer's precision, in which the images are drawn.
        seed: The seed of the generated images, of the KID's subsets and of the IS's splits.
        kid_subsets: The number of subsets of the KID.
        kid_subset_size: The images of a subset.
        is_splits: The number of splits of the IS.
    """

    extractor: str
    resize: str
    num_generated: int
    num_real: int
    real: str
    sampler: str
    num_steps: int
    guidance: float
    weights: str
    precision: str
    seed: int
    kid_subsets: int
    kid_subset_size: int
    is_splits: int

    def __str__(self) -> str:
        """Returns the protocol in one line."""
        guidance = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        return (
            f"extractor {self.extractor}, resize {self.resize}, {self.num_generated:,} generated and {self.num_real:,} "
            f"real images ({self.real}), {self.sampler} with {self.num_steps} steps{guidance}, {self.weights} weights, "
            f"precision {self.precision}, seed {self.seed}, KID of {self.kid_subsets} x {self.kid_subset_size:,}, IS "
            f"splits {self.is_splits}"
        )

    @property
    def calls_per_image(self) -> int:
        """Network calls for an image; guidance takes two at each step."""
        return self.num_steps * (1 if self.guidance == 1 else 2)


def weights_in_use(trainer: Trainer, module: DDPM) -> str:
    """Returns which weights sampling uses in this command, ``"averaged"`` or ``"raw"``."""
    if trainer.state.fn == "fit":
        averaged = any(isinstance(callback, WeightAveraging) for callback in getattr(trainer, "callbacks", []))
    else:
        averaged = module.averaged
    return "averaged" if averaged else "raw"
