"""Lightning's Trainer with a ``predict`` that draws images without data, and with ``gradients``."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningDataModule, LightningModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from typing_extensions import override

from lit_ddpm._internal.checks import InputError
from lit_ddpm.callbacks.sample_writer import SampleWriter
from lit_ddpm.diffusion.gradients import GradientStatistics, gradient_statistics, gradient_table
from lit_ddpm.training.checkpoint import load_checkpoint
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory
from lit_ddpm.training.sampling import SampleChunk, chunk_loader


class Trainer(lightning.Trainer):
    """Lightning's Trainer; ``test`` prints only the report, and ``predict`` draws images without data."""

    @override
    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = False,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        exact: bool = False,
        num_timesteps: int | None = None,
        num_images: int | None = None,
        target_se: float | None = None,
    ) -> Any:
        """Measures the variational bound on the test split, exactly or to a precision; prints and writes the report.

        Args:
            model: The model.
            dataloaders: The data, in place of a data module.
            ckpt_path: The checkpoint to test.
            verbose: Print every logged value as well.
            datamodule: The data.
            weights_only: Load the checkpoint without pickled objects.
            exact: Measure the likelihood under the probability-flow ODE next to the bound.
            num_timesteps: Estimate the bound of each image from so many timesteps; all T if None.
            num_images: Measure so many random images of the test split; all if None.
            target_se: Choose both for a standard error of the total, with the fewest network calls.
        """
        module = self.lightning_module if model is None else model
        settings = num_images, num_timesteps, target_se, exact or None
        with module.evaluation.using(*settings) if isinstance(module, DDPM) else nullcontext():
            return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    @override
    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        num_samples: int = 64,
        seed: int = 0,
        output_dir: str | None = None,
    ) -> Any:
        """Draws images and writes them as PNG and as one .npz file; when repeated, it draws the missing ones.

        Args:
            model: The model.
            dataloaders: Batches for ``predict_step``, in place of the images of a seed.
            datamodule: A data module with such batches.
            return_predictions: Return the images as well.
            ckpt_path: The checkpoint to sample from.
            weights_only: Load the checkpoint without pickled objects.
            num_samples: The number of images.
            seed: The seed of the images; image i of a seed is always the same.
            output_dir: The directory to write to; ``predict`` in the run directory if None.
        """
        model = self.lightning_module if model is None else model
        if dataloaders is not None or datamodule is not None or not isinstance(model, DDPM):
            return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)
        directory = Path(output_dir) if output_dir is not None else RunDirectory.of_trainer(self).predictions
        writer = SampleWriter(directory, num_samples, seed)
        self.callbacks.append(writer)  # type: ignore[attr-defined]  # Lightning sets it from another class
        try:
            return super().predict(model, None, _MissingSamples(writer), return_predictions, ckpt_path, weights_only)
        finally:
            self.callbacks.remove(writer)  # type: ignore[attr-defined]  # the next prediction has its own

    def gradients(
        self,
        model: LightningModule | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        num_batches: int = 16,
    ) -> GradientStatistics:
        """Measures by timestep how large and how noisy the gradient of the objective is, and prints and writes it.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: The checkpoint to measure.
            weights_only: Load the checkpoint without pickled objects; it always is.
            num_batches: The number of training batches.
        """
        if not isinstance(model, DDPM) or datamodule is None:
            raise InputError("gradients needs a DDPM and a data module.")
        if num_batches < 2:
            raise InputError(f"num_batches = {num_batches} must be at least 2.")
        if ckpt_path is not None:
            checkpoint = load_checkpoint(Path(ckpt_path))
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
        datamodule.prepare_data()
        datamodule.setup("fit")
        device = self.strategy.root_device
        model.to(device)
        batches = tqdm(training_batches(model, datamodule, device), "gradients", num_batches, leave=False)
        with self.precision_plugin.forward_context():
            found = gradient_statistics(model.denoiser, batches, num_batches=num_batches)
        path = RunDirectory.of_trainer(self).gradients
        found.save(path)
        print(f"{gradient_table(found, model.denoiser, model.objective)}\nwritten to {path}")
        return found


def training_batches(
    module: DDPM, data: LightningDataModule, device: torch.device
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yields the training images on a device, with the keyword arguments of the network."""
    for batch in data.train_dataloader():
        yield module.unpack_batch(data.on_after_batch_transfer(move_data_to_device(batch, device), 0))


class _MissingSamples(LightningDataModule):
    """The images that a writer lacks; Lightning asks for them when the weights are loaded."""

    def __init__(self, writer: SampleWriter) -> None:
        super().__init__()
        self.writer = writer

    @override
    def predict_dataloader(self) -> DataLoader[SampleChunk]:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, DDPM)
        return chunk_loader(self.writer.missing(module))
