"""Models of diffusers as `DDPM`."""

from pathlib import Path

from lit_ddpm.data.spec import DataSpec
from lit_ddpm.diffusion.objective import HybridObjective, PredictionMSE
from lit_ddpm.nn.diffusers import DiffusersUNet
from lit_ddpm.pipelines.pipeline_files import PipelineFiles
from lit_ddpm.pipelines.scheduler import process_of
from lit_ddpm.training.module import DDPM


def load_pipeline(source: str | Path, no_label: bool | None = None) -> DDPM:
    """Loads a ``DDPMPipeline``, ``DDIMPipeline`` or ``UNet2DModel`` of diffusers; needs the extra ``diffusers``.

    Schedule, prediction type, variance type and clipping are those of its scheduler. A fixed variance is that of the
    code of Ho et al., see `Variance`. The objective is that of its training: the uniform eps-MSE, or L_hybrid for a
    learned variance. Averaged weights in ``unet_ema`` are preferred to those in ``unet``.

    Args:
        source: A directory, or the name of a model on the Hugging Face Hub.
        no_label: Whether the last class of a class-conditional network means "no label". If None, it does in a pipeline
            of `save_pipeline` that has one.

    Raises:
        ValueError: If files are missing or damaged, or a setting of the pipeline has no equivalent.
    """
    files = PipelineFiles.find(str(source))
    process = process_of(files.scheduler)
    variance = files.notes.get("variance", process.variance)
    if no_label is None:
        no_label = bool(files.notes.get("no_label"))
    network = DiffusersUNet.from_unet(files.load_network(), no_label)
    model = DDPM(
        network,
        process.schedule,
        process.parametrization,
        HybridObjective() if variance == "learned" else PredictionMSE(),
        sampler=process.sampler,
        variance=variance,
        clip=process.clip,
    )
    model.observe(DataSpec(image_shape=_image_shape(network)))
    return model


def _image_shape(network: DiffusersUNet) -> tuple[int, ...] | None:
    """Returns the shape (C, H, W) of the images of a ``UNet2DModel``; None if its configuration has no size."""
    size = network.options.get("sample_size")
    if size is None:
        return None
    return (network.in_channels, *((size, size) if isinstance(size, int) else size))
