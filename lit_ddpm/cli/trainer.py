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
    def test(self, *args: Any, verbose: bool = False, **kwargs: Any) -> Any:
        """Measures the exact variational bound on the test split, and prints and writes the ledger.

        Args:
            *args: Those of `lightning.Trainer.test`.
            verbose: Print every logged value as well.
            **kwargs: Those of `lightning.Trainer.test`.
        """
        return super().test(*args, verbose=verbose, **kwargs)  # type: ignore[misc]  # verbose by name only

    @override
    def predict(  # type: ignore[override]  # arguments of Lightning after the first three by name only
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        *,
        ckpt_path: str | Path | None = None,
        num_samples: int = 64,
        seed: int = 0,
        output_dir: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Draws images and writes them as PNG and as one .npz file; when repeated, it draws the missing ones.

        Args:
            model: The model.
            dataloaders: Batches for ``predict_step``, in place of the images of a seed.
            datamodule: Ignored, since sampling needs no data.
            ckpt_path: The checkpoint to sample from.
            num_samples: The number of images.
            seed: The seed of the images; image i of a seed is always the same.
            output_dir: The directory to write to; ``predict`` in the run directory if None.
            **kwargs: Those of `lightning.Trainer.predict`.
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
                return super().predict(model, dataloaders, ckpt_path=ckpt_path, **kwargs)
            finally:
                self.callbacks.remove(writer)  # type: ignore[attr-defined]  # the next prediction has its own
        return super().predict(model, dataloaders, ckpt_path=ckpt_path, **kwargs)


def _origin(model: DDPM, ckpt_path: str | Path | None, seed: int) -> dict[str, Any]:
    """Returns a fingerprint of the weights, sampler, guidance and seed."""
    path = Path(ckpt_path) if ckpt_path is not None else None
    weights = sha256_of(path) if path is not None and path.is_file() else fingerprint_of(model)
    return {"weights": weights, "sampler": as_config(model.sampler), "guidance": model.guidance, "seed": seed}


def _only_item(batch: Sequence[Any]) -> Any:
    return batch[0]
