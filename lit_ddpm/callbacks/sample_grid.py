"""Pictures of samples while training goes on."""

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.callbacks.loggers import log_picture
from lit_ddpm.data.pixels import to_uint8
from lit_ddpm.diffusion.denoiser import evaluating
from lit_ddpm.diffusion.sampler import Sampler, standard_normal
from lit_ddpm.training.distributed import hold_whole
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import run_directory
from lit_ddpm.training.sampling import draw, is_quick, sampler_for

MIN_PIXELS = 32  # smaller images are enlarged to at least this many rows, so that a person can see them
TIMES = 10  # the columns of a trajectory


class SampleGrid(Callback):
    """Draws the same images after validation, to watch them come into being, and how noise becomes some others.

    - ``sample/grid``, in ``samples/step_<step>.png`` of the run's directory.
    - ``sample/trajectory``, in ``samples/trajectory_<step>.png``: x_t above x0_hat at ten times, from T on the left.

    Both go to TensorBoard and W&B too. The weights are the averaged ones when `EMA` is among the callbacks. The
    pictures do not depend on the number of processes, and training is the same with and without them.

    Args:
        num_images: The number of images.
        columns: Images in a row; if None, one for each class of a network with labels, or 8.
        num_trajectories: The number of images in the trajectory, none if 0.
        every_n_epochs: Draw after the validation of every so many epochs, and at the end of training.
        seed: The seed of the images.
        sampler: How to make them; the module's own sampler if None.

    Raises:
        ValueError: If one of the numbers is too small.
    """

    def __init__(
        self,
        num_images: int = 64,
        columns: int | None = None,
        num_trajectories: int = 2,
        every_n_epochs: int = 1,
        seed: int = 0,
        sampler: Sampler | None = None,
    ) -> None:
        check_at_least(self, 1, num_images=num_images, columns=columns, every_n_epochs=every_n_epochs)
        check_at_least(self, 0, num_trajectories=num_trajectories)
        self.num_images = num_images
        self.columns = columns
        self.num_trajectories = num_trajectories
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
        assert isinstance(pl_module, DDPM)
        hold_whole(pl_module.denoiser.network, True)
        self._draw(trainer, pl_module)
        hold_whole(pl_module.denoiser.network, False)

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, DDPM)
        if self._drawn_at == trainer.global_step:
            return
        self._drawn_at = trainer.global_step
        sampler, step = sampler_for(trainer, self.sampler or module.sampler), trainer.global_step
        title = "drawing the sample grid"
        num_images = min(self.num_images, sampler.chunk_size) if is_quick(trainer) else self.num_images
        grid = torch.cat(draw(trainer, module, num_images, self.seed, sampler, Tensor.cpu, title))
        pictures = {"grid": (f"step_{step:07d}.png", grid, self.columns or module.num_classes or 8, "")}
        if self.num_trajectories:
            with trainer.precision_plugin.forward_context():
                images, times = trajectory(module, sampler, self.num_trajectories, self.seed)
            at = f", x_t above x0_hat at t = {', '.join(map(str, times))}"
            pictures["trajectory"] = (f"trajectory_{step:07d}.png", images, len(times), at)
        directory = run_directory(trainer) / "samples"
        if not trainer.is_global_zero:
            return
        steps = len(sampler.timesteps(module.denoiser.schedule)) - 1
        guided = f", guidance {module.guidance:g}" if module.guidance != 1 else ""
        for key, (name, images, columns, more) in pictures.items():
            caption = f"step {step}, {type(sampler).__name__} with {steps} steps, seed {self.seed}{guided}{more}"
            picture = to_pil_image(image_grid(to_uint8(images, module.levels), columns))
            log_picture(trainer, f"sample/{key}", picture, directory / name, caption)


def trajectory(module: DDPM, sampler: Sampler, num_images: int, seed: int) -> tuple[Tensor, list[int]]:
    """How `num_images` images come into being, at up to ten evenly spaced times.

    Returns:
        For each image its x_t and then its estimates of x_0 at those times, ``[num_images * 2 * times, C, H, W]``; and
        the times, from T down.
    """
    denoiser = module.sampling_denoiser
    cond = {k: v.to(module.device) for k, v in module.sample_cond(torch.arange(num_images)).items()}
    visited = sampler.timesteps(denoiser.schedule)[:-1]
    times = [visited[round(i)] for i in torch.linspace(0, len(visited) - 1, min(TIMES, len(visited))).tolist()]
    generator = keyed_generator("trajectory", seed)
    x_T = standard_normal((num_images, *(module.image_shape or ())), generator, module.device)
    with evaluating(denoiser):
        seen = [
            torch.stack([x_t, denoiser(x_t, t, **cond)])
            for t, x_t in sampler.trajectory(denoiser, x_T, generator, **cond)
            if t in times
        ]
    return torch.stack(seen).permute(2, 1, 0, 3, 4, 5).flatten(0, 2), times


def image_grid(images: Tensor, columns: int) -> Tensor:
    """A picture of uint8 images ``[N, C, H, W]`` with `columns` in a row, uint8 ``[3, H', W']``."""
    zoom = max(1, -(-MIN_PIXELS // images.shape[-2]))
    images = F.interpolate(images.cpu().float(), scale_factor=zoom, mode="nearest").byte()
    grid: Tensor = make_grid(images, nrow=columns, padding=2, pad_value=128)
    return grid
