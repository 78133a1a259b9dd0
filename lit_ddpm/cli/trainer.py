"""Lightning's Trainer with a ``predict`` that draws images without data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm._internal.config import as_config
from lit_ddpm._internal.files import sha256_of
from lit_ddpm.callbacks.sample_writer import SampleWriter
from lit_ddpm.metrics.features import fingerprint_of
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory


class Trainer(lightning.Trainer):
    """Lightning's Trainer; ``test`` prints only the ledger, and ``predict`` draws images without data."""

    @override
    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = False,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Measures the exact variational bound on the test split, and prints and writes the ledger.

        Args:
            model: The model.
            dataloaders: The data, in place of a data module.
            ckpt_path: The checkpoint to test.
            verbose: Print every logged value as well.
            datamodule: The data.
            weights_only: Load the checkpoint without pickled objects.
        """
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
            datamodule: Ignored, since sampling needs no data.
            return_predictions: Return the images as well.
            ckpt_path: The checkpoint to sample from.
            weights_only: Load the checkpoint without pickled objects.
            num_samples: The number of images.
            seed: The seed of the images; image i of a seed is always the same.
            output_dir: The directory to write to; ``predict`` in the run directory if None.
        """
        if dataloaders is None and isinstance(model, DDPM):
            check_at_least(self, 1, num_samples=num_samples)
            run = RunDirectory.of_trainer(self)
            directory = Path(output_dir) if output_dir is not None else run.predictions
            writer = SampleWriter(directory, num_samples, _origin(model, ckpt_path, seed))
            size = model.sampler.chunk_size
            missing = list(writer.missing(size)) or [(0, min(size, num_samples))]
            chunks = [torch.tensor([seed, first, count]) for first, count in missing]
            dataloaders = DataLoader(cast(Dataset[torch.Tensor], chunks), batch_size=1, collate_fn=_only_item)
            self.callbacks.append(writer)  # type: ignore[attr-defined]  # Lightning sets it from another class
            try:
                return super().predict(model, dataloaders, None, return_predictions, ckpt_path, weights_only)
            finally:
                self.callbacks.remove(writer)  # type: ignore[attr-defined]  # the next prediction has its own
        return super().predict(model, dataloaders, None, return_predictions, ckpt_path, weights_only)


def _origin(model: DDPM, ckpt_path: str | Path | None, seed: int) -> dict[str, Any]:
    """Returns a fingerprint of the weights, sampler, guidance and seed."""
    path = Path(ckpt_path) if ckpt_path is not None else None
    weights = sha256_of(path) if path is not None and path.is_file() else fingerprint_of(model)
    return {"weights": weights, "sampler": as_config(model.sampler), "guidance": model.guidance, "seed": seed}


def _only_item(batch: Sequence[Any]) -> Any:
    return batch[0]
