"""A `DDPM` as a ``DDPMPipeline`` of diffusers."""

import tempfile
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import rebuilt
from lit_ddpm._internal.extras import import_extra
from lit_ddpm._internal.files import create_directory, has_files, write_json
from lit_ddpm.callbacks.pictures import draw_samples
from lit_ddpm.nn.diffusers import DiffusersUNet
from lit_ddpm.nn.unet import UNet
from lit_ddpm.pipelines.card import model_card
from lit_ddpm.pipelines.pipeline_files import NOTES
from lit_ddpm.pipelines.scheduler import scheduler_config
from lit_ddpm.pipelines.unet2d import to_unet2d
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory


def save_pipeline(model: DDPM, directory: str | Path, run: RunDirectory | None = None, num_samples: int = 16) -> None:
    """Writes a directory that ``DDPMPipeline.from_pretrained`` loads, with a model card; needs the extra ``diffusers``.

    The card contains the model's report, sample metrics and configuration if its `run` is given, and `num_samples`
    images. The directory is written completely or not at all.

    Raises:
        ValueError: If the directory has files, or a setting of the model has no equivalent in a pipeline.
    """
    directory = Path(directory)
    if has_files(directory):
        raise InputError(f"{directory} is not empty: set another directory with --output_dir.")
    if num_samples < 0:
        raise InputError(f"num_samples = {num_samples} must be at least 0.")
    diffusers = import_extra("diffusers", needed_by="an export")
    pipeline = diffusers.DDPMPipeline(_unet2d(model), diffusers.DDPMScheduler(**scheduler_config(model.denoiser)))
    create_directory(directory.parent)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}_") as partial:
        complete = Path(partial) / "pipeline"
        pipeline.save_pretrained(complete)
        notes = {"variance": model.denoiser.variance, "levels": model.levels}
        write_json(complete / NOTES, notes | {"no_label": model.denoiser.network_spec.no_label is not None})
        if num_samples:
            draw_samples(_samples(model, num_samples), columns=8, levels=model.levels)[0].save(complete / "samples.png")
        (complete / "README.md").write_text(model_card(model, directory.name, run, num_samples))
        if directory.is_dir():
            directory.rmdir()
        complete.rename(directory)


def _unet2d(model: DDPM) -> nn.Module:
    """Returns the network of a model as a ``UNet2DModel``."""
    network, shape = model.denoiser.network, model.data.image_shape
    if shape is None:
        raise InputError("image_shape is unknown until the module has seen data: export a checkpoint of a fit.")
    if model.decoder.levels is None:
        raise InputError("real-valued data has no DDPMPipeline: it draws images of pixel levels.")
    if isinstance(network, DiffusersUNet):
        return network.network
    if type(network) is UNet:
        return to_unet2d(network, shape[1:])
    raise InputError(f"network = {type(network).__name__} has no UNet2DModel: it must be UNet or DiffusersUNet.")


def _samples(model: DDPM, num_images: int) -> Tensor:
    """Draws images with the model's own sampler and a progress bar over its network calls."""
    sampler = rebuilt(model.sampler, chunk_size=num_images)
    num_steps = len(sampler.timesteps(model.denoiser.schedule)) - 1
    with tqdm(total=num_steps, desc=f"drawing {num_images} images", unit="step") as progress:

        def count(*_: object) -> None:
            progress.update()

        counter = model.denoiser.network.register_forward_hook(count)
        try:
            return model.sample(num_images, sampler=sampler)
        finally:
            counter.remove()
