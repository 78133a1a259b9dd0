"""A grid of samples while training goes on."""

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from lit_ddpm.callbacks.sharing import draw
from lit_ddpm.data.pixels import to_uint8
from lit_ddpm.module import DDPM
from lit_ddpm.run_directory import run_directory
from lit_ddpm.sampler import Sampler

MIN_PIXELS = 32  # smaller images are enlarged to at least this many rows, so that a person can see them


class SampleGrid(Callback):
    """Draws the same images after validation, to watch them come into being.

    They go to ``samples/step_<step>.png`` in the run's directory, and to TensorBoard and W&B as ``sample/grid``. The
    weights are the averaged ones when `EMA` is listed before. The pictures do not depend on the number of processes,
    and training is the same with and without them.

    Args:
        num_images: The number of images.
        columns: Images in a row.
        every_n_epochs: Draw after the validation of every so many epochs, and at the end of training.
        seed: The seed of the images.
        sampler: How to make them; the module's own sampler if None.

    Raises:
        ValueError: If one of the numbers is less than 1.
    """

    def __init__(
        self,
        num_images: int = 64,
        columns: int = 8,
        every_n_epochs: int = 1,
        seed: int = 0,
        sampler: Sampler | None = None,
    ) -> None:
        for name, value in {"num_images": num_images, "columns": columns, "every_n_epochs": every_n_epochs}.items():
            if value < 1:
                raise ValueError(f"{name} = {value} of SampleGrid must be at least 1.")
        self.num_images = num_images
        self.columns = columns
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self.sampler = sampler
        self._drawn_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the module can sample, and with how many steps."""
        if not isinstance(pl_module, DDPM):
            raise ValueError(f"SampleGrid draws from a DDPM, not from a {type(pl_module).__name__}.")
        (self.sampler or pl_module.sampler).timesteps(pl_module.denoiser.schedule)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws while fitting, in the epochs for it."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the end of training, unless validation just did."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DDPM)
        if self._drawn_at == trainer.global_step:
            return
        self._drawn_at = trainer.global_step
        sampler = self.sampler or pl_module.sampler
        images = torch.cat(
            draw(trainer, pl_module, self.num_images, self.seed, sampler, Tensor.cpu, "drawing the sample grid")
        )
        path = run_directory(trainer) / "samples" / f"step_{trainer.global_step:07d}.png"
        if not trainer.is_global_zero:
            return
        picture = image_grid(to_uint8(images, pl_module.levels), self.columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        pil_image = to_pil_image(picture)
        pil_image.save(path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("sample/grid", picture, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                logger.log_image("sample/grid", [pil_image])


def image_grid(images: Tensor, columns: int) -> Tensor:
    """A picture of uint8 images ``[N, C, H, W]`` with `columns` in a row, uint8 ``[3, H', W']``."""
    zoom = max(1, -(-MIN_PIXELS // images.shape[-2]))
    images = F.interpolate(images.cpu().float(), scale_factor=zoom, mode="nearest").byte()
    grid: Tensor = make_grid(images, nrow=columns, padding=2, pad_value=128)
    return grid
