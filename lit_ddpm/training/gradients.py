"""The gradient statistics of a `DDPM` on its training images."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from tqdm.auto import tqdm

from lit_ddpm._internal.tables import text_table
from lit_ddpm.diffusion.gradients import GradientStatistics, gradient_statistics, timestep_cells
from lit_ddpm.diffusion.objective import weight_on_x0_mse

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM


def measure_gradients(
    trainer: Trainer, module: "DDPM", data: LightningDataModule, num_batches: int
) -> GradientStatistics:
    """Measures `gradient_statistics` of the first training batches on one device, with a progress bar.

    Raises:
        ValueError: If there are fewer than two batches of one size.
    """
    if num_batches < 2:
        raise ValueError(f"num_batches = {num_batches} must be at least 2.")
    data.prepare_data()
    data.setup("fit")
    device = trainer.strategy.root_device
    module.to(device)
    size = num_batches * len(timestep_cells(module.denoiser.schedule.num_steps)[0])
    with (
        tqdm(total=size, desc="gradients", unit="step", leave=False) as bar,
        trainer.precision_plugin.forward_context(),
    ):
        batches = itertools.islice(_full_batches(training_batches(module, data, device)), num_batches)
        return gradient_statistics(module.denoiser, batches, progress=bar.update)


def training_batches(
    module: "DDPM", data: LightningDataModule, device: torch.device
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yields the training images on a device, with the keyword arguments of the network."""
    for batch in data.train_dataloader():
        yield module.unpack_batch(data.on_after_batch_transfer(move_data_to_device(batch, device), 0))


def _full_batches(batches: Iterator[tuple[Tensor, dict[str, Any]]]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yields the batches that have as many images as the first one."""
    first = None
    for images, cond in batches:
        first = len(images) if first is None else first
        if len(images) == first:
            yield images, cond


def gradient_table(found: GradientStatistics, module: "DDPM") -> str:
    """Returns the statistics of the gradient of a module's objective by timestep as a table for a terminal."""
    denoiser = module.denoiser
    weight = weight_on_x0_mse(module.objective, denoiser)
    row = found.t - 2
    signal, noise = found.signal, found.variance.sqrt()
    density = found.optimal_density(weight) * len(weight)
    columns = {
        "t": found.t,
        "log SNR": denoiser.schedule.log_snr(found.t),
        "gradient": weight[row] * signal,
        "noise": weight[row] * noise,
        "ratio": signal / noise,
        "density": density[row],
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    cells = [[str(t), *(f"{value:.4g}" for value in values)] for t, *values in rows]
    return "\n".join(
        [
            text_table([list(columns), *cells], widths=(11, 9, 9, 9, 9, 9), left=0),
            "gradient: the norm of the mean gradient at t; noise: its standard deviation for one image;",
            "ratio: gradient / noise; density: the optimal density of t, where 1 is uniform",
            f"uniform t needs {found.saving(weight):.2f} times as many images as the optimal density",
        ]
    )
