"""Lightning's Trainer with a ``predict`` that needs no data."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset

from lit_ddpm._internal.config import as_config
from lit_ddpm.callbacks.sample_writer import SampleWriter
from lit_ddpm.metrics.features import identity_of
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import run_directory


class Trainer(lightning.Trainer):
    """Lightning's Trainer, whose ``test`` prints the ledger alone and whose ``predict`` makes samples without data."""

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = False,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Measures the whole variational bound on the test split, and prints and writes the ledger.

        Args:
            model: The model.
            dataloaders: See Lightning's Trainer.
            ckpt_path: The checkpoint to test.
            verbose: Print every logged value too.
            datamodule: The data.
            weights_only: See Lightning's Trainer.
        """
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

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
        """Makes samples and writes them as PNG and as one .npz file; started again, it makes those that are missing.

        Args:
            model: The model.
            dataloaders: Instead of samples, what to call ``predict_step`` on.
            datamodule: Not used: samples need no data.
            return_predictions: See Lightning's Trainer.
            ckpt_path: The checkpoint to sample from.
            weights_only: See Lightning's Trainer.
            num_samples: The number of samples.
            seed: The seed of the samples; sample number i of a seed is always the same.
            output_dir: Where to write them; the directory ``predict`` of the run if not given.
        """
        if dataloaders is None and isinstance(model, DDPM):
            if num_samples < 1:
                raise ValueError(f"num_samples = {num_samples} must be at least 1.")
            directory = Path(output_dir) if output_dir is not None else run_directory(self) / "predict"
            writer = SampleWriter(directory, num_samples, _origin(model, ckpt_path, seed))
            size = model.sampler.chunk_size
            missing = list(writer.missing(size)) or [(0, min(size, num_samples))]
            chunks = [torch.tensor([seed, first, count]) for first, count in missing]
            dataloaders = DataLoader(cast(Dataset[torch.Tensor], chunks), batch_size=1, collate_fn=_only_item)
            # mypy does not see the list, which Lightning sets from outside the class
            self.callbacks.append(writer)  # type: ignore[attr-defined]
        return super().predict(model, dataloaders, None, return_predictions, ckpt_path, weights_only)


def _origin(model: DDPM, ckpt_path: str | Path | None, seed: int) -> dict[str, Any]:
    """What makes samples what they are."""
    from_file = ckpt_path is not None and Path(ckpt_path).is_file()
    weights = hashlib.sha256(Path(str(ckpt_path)).read_bytes()).hexdigest() if from_file else identity_of(model)
    return {"weights": weights, "sampler": as_config(model.sampler), "guidance": model.guidance, "seed": seed}


def _only_item(batch: Sequence[Any]) -> Any:
    return batch[0]
