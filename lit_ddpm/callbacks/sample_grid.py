"""Sample grids and denoising trajectories during training."""

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.callbacks.callback import DDPMCallback
from lit_ddpm.callbacks.loggers import log_image
from lit_ddpm.callbacks.pictures import DRAWN_DIMS, draw_samples
from lit_ddpm.diffusion.denoiser import evaluating
from lit_ddpm.diffusion.sampler import Sampler, standard_normal
from lit_ddpm.training.averaging import averaged_weights
from lit_ddpm.training.distributed import full_weights
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory
from lit_ddpm.training.sampling import draw, is_fast_dev_run, shortened

NUM_TIMES = 10  # columns of a trajectory


class SampleGrid(DDPMCallback):
    """Draws the same images after validation during a fit, and the trajectories of a few others from noise.

    - ``sample/grid``, in ``samples/step_<step>.png`` of the run directory. A model of conditions that are images draws
      under those of held-out images: condition, sample and truth are side by side.
    - ``sample/trajectory``, in ``samples/trajectory_<step>.png``: x_t above x0_hat at ten times, from T on the left.

    Sequences are drawn as curves, and volumes by their middle slices; see `draw_samples`. TensorBoard and W&B receive
    both. The weights are averaged if `EMA` is among the callbacks, before or after this
    one. The images do not depend on the number of ranks, and the training is the same with and without them.

    Args:
        num_images: The number of images.
        columns: Images in a row; if None, one for each class of a class-conditional network, else 8 (12 with
            conditions and truth).
        num_trajectories: The number of images in the trajectory plot; 0 for none.
        every_n_epochs: Draw in the validation of every n-th epoch, and at the end of training.
        seed: The seed of the images.
        sampler: The sampler; the module's own if None.
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
        super().__init__(every_n_epochs)
        check_at_least(self, 1, num_images=num_images, columns=columns)
        check_at_least(self, 0, num_trajectories=num_trajectories)
        self.num_images = num_images
        self.columns = columns
        self.num_trajectories = num_trajectories
        self.seed = seed
        self.sampler = sampler

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = -1
        if self.sampler is not None:
            self.sampler.timesteps(self.ddpm(pl_module).denoiser.schedule)  # refuses more steps than T

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self.is_due(trainer):
            self._draw(trainer, self.ddpm(pl_module))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last_step != trainer.global_step:
            self._draw(trainer, self.ddpm(pl_module))

    def _draw(self, trainer: Trainer, module: DDPM) -> None:
        step = self._last_step = trainer.global_step
        sampler = shortened(trainer, self.sampler or module.sampler)
        num_images = min(self.num_images, sampler.chunk_size) if is_fast_dev_run(trainer) else self.num_images
        shape = module.data.image_shape or ()
        if len(shape) - 1 not in DRAWN_DIMS:
            rank_zero_info(f"SampleGrid draws sequences, images and volumes, not samples of shape {list(shape)}.")
            return
        with averaged_weights(trainer, module, self), full_weights(trainer, module.denoiser.network):
            chunks = draw(trainer, module, num_images, self.seed, sampler, Tensor.cpu, "drawing the sample grid")
            self._log(trainer, module, torch.cat(chunks), sampler, step)

    def _log(self, trainer: Trainer, module: DDPM, samples: Tensor, sampler: Sampler, step: int) -> None:
        directory = RunDirectory.of_trainer(trainer).samples
        if not trainer.is_global_zero:
            return
        num_steps = len(sampler.timesteps(module.denoiser.schedule)) - 1
        scale = module.guidance.scale
        guidance = f", guidance {scale:g}" if scale != 1 else ""
        caption = f"step {step}, {type(sampler).__name__} with {num_steps} steps, seed {self.seed}{guidance}"
        truth, cond = (None, {}) if module.held_out is None else module.held_out(torch.arange(len(samples)))
        columns = self.columns or (12 if "cond" in cond else module.denoiser.network_spec.num_classes or 8)
        units = (module.levels, module.data.standardization)
        in_units, shown = module.condition is not None, module.data.standardized(samples)
        picture, note = draw_samples(shown, columns, *units, cond.get("cond"), truth, in_units)
        note = f", {note}" if note else ""
        log_image(trainer, "sample/grid", picture, directory / f"step_{step:07d}.png", caption + note)
        if self.num_trajectories:
            with trainer.precision_plugin.forward_context():
                images, times = draw_trajectories(module, sampler, self.num_trajectories, self.seed)
            picture, _ = draw_samples(images, len(times), *units)
            caption += f", x_t above x0_hat at t = {', '.join(map(str, times))}"
            path = directory / f"trajectory_{step:07d}.png"
            log_image(trainer, "sample/trajectory", picture, path, caption)


def draw_trajectories(module: DDPM, sampler: Sampler, num_images: int, seed: int) -> tuple[Tensor, list[int]]:
    """Draws images and keeps x_t and x0_hat at up to ten evenly spaced times.

    Returns for each image its x_t and then its x0_hat at those times, ``[num_images * 2 * times, C, ...]``; and the
    times in decreasing order.
    """
    denoiser = module.sampling_denoiser
    cond = {key: x.to(module.device) for key, x in module.sample_cond(torch.arange(num_images)).items()}
    timesteps = sampler.timesteps(denoiser.schedule)[:-1]
    columns = torch.linspace(0, len(timesteps) - 1, min(NUM_TIMES, len(timesteps))).tolist()
    times = [timesteps[round(i)] for i in columns]
    generator = keyed_generator("trajectory", seed)
    x_T = standard_normal((num_images, *(module.data.image_shape or ())), generator, module.device)
    with evaluating(denoiser):
        pairs = [
            torch.stack([x_t, denoiser(x_t, t, **cond)])
            for t, x_t in sampler.trajectory(denoiser, x_T, generator, **cond)
            if t in times
        ]
    return torch.stack(pairs).transpose(0, 2).flatten(0, 2), times
