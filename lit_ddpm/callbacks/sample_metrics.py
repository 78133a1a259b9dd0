"""FID, KID and IS during training and in testing."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from typing_extensions import override

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm.callbacks.base import DDPMCallback
from lit_ddpm.callbacks.features import generated_features, num_features_of, real_statistics
from lit_ddpm.callbacks.loggers import log_config, step_of, summarize
from lit_ddpm.callbacks.protocol import MetricsProtocol, weights_in_use
from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.metrics.features import ExtractorInfo
from lit_ddpm.metrics.fid import RealStatistics, sample_metrics
from lit_ddpm.metrics.inception import InceptionFeatures
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory
from lit_ddpm.training.sampling import is_fast_dev_run, shortened


@dataclass(frozen=True)
class _Measurement:
    """Everything that a command needs to measure its samples."""

    info: ExtractorInfo
    real: RealStatistics
    sampler: Sampler
    protocol: MetricsProtocol


class SampleMetrics(DDPMCallback):
    """Draws images and measures FID, KID and IS against the training images.

    They are logged as ``sample/fid_<extractor>``, ``sample/kid_<extractor>``, ``sample/kid_std_<extractor>`` and, if
    the extractor classifies, ``sample/is_<extractor>``. Each evaluation adds a line with its protocol to
    ``sample_metrics.jsonl`` in the run directory. A fit evaluates in its first validation and then every n-th epoch,
    with the averaged weights if there is an `EMA`; ``validate`` and ``test`` evaluate once. The images are drawn on all
    ranks; the values do not depend on their number, and the training does not depend on the evaluation.

    The real images are those of the data module's ``reference_dataloader()``: the training split in order, without
    augmentation. Their statistics are cached if the data module has a ``fingerprint()``.

    Args:
        extractor: Any module from uint8 images to features, see `lit_ddpm.metrics`; `InceptionFeatures` if None.
        num_samples: The number of images in ``test``.
        num_val_samples: The number of images in a validation.
        val_sampler: The sampler in a validation; the module's own, as in ``test``, if None.
        every_n_epochs: Evaluate in the validation of every n-th epoch.
        seed: The seed of the images, of the KID's subsets and of the IS's splits.
        kid_subsets: The number of subsets of the KID.
        kid_subset_size: The images of a subset; fewer if there are not as many.
        is_splits: The number of splits of the IS.
        cache_dir: The folder of the cached statistics; ``lit_ddpm`` in torch's hub directory if None.

    Raises:
        ValueError: If a number is too small; at the start of a command, if the extractor does not accept the images of
            the data, or a cached file belongs to other data or another extractor.
    """

    def __init__(
        self,
        extractor: nn.Module | None = None,
        num_samples: int = 10_000,
        num_val_samples: int = 2_500,
        val_sampler: Sampler | None = None,
        every_n_epochs: int = 1,
        seed: int = 0,
        kid_subsets: int = 100,
        kid_subset_size: int = 1000,
        is_splits: int = 10,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs)
        check_at_least(self, 1, kid_subsets=kid_subsets, is_splits=is_splits)
        check_at_least(
            self, 2, num_samples=num_samples, num_val_samples=num_val_samples, kid_subset_size=kid_subset_size
        )
        self.extractor = extractor if extractor is not None else InceptionFeatures()
        self.num_samples = num_samples
        self.num_val_samples = num_val_samples
        self.val_sampler = val_sampler
        self.seed = seed
        self.kid_subsets = kid_subsets
        self.kid_subset_size = kid_subset_size
        self.is_splits = is_splits
        self.cache_dir = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "lit_ddpm"
        self._measurement: _Measurement | None = None
        self._has_evaluated = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module = self.ddpm(pl_module)
        (self.val_sampler or module.sampler).timesteps(module.denoiser.schedule)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_evaluated = False
        self._prepare(trainer, self.ddpm(pl_module))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._prepare(trainer, self.ddpm(pl_module))

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, self.ddpm(pl_module))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The first validation always evaluates, so that a checkpoint callback can monitor the metric in any of them.
        if not trainer.sanity_checking and (self.is_due(trainer) or not self._has_evaluated):
            values, protocol = self._evaluate(trainer, self.ddpm(pl_module))
            pl_module.log_dict(values)
            self._has_evaluated = True
            rank_zero_info(", ".join(f"{key} = {value:.4f}" for key, value in values.items()) + f" ({protocol})")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values, protocol = self._evaluate(trainer, self.ddpm(pl_module))
        pl_module.log_dict(values)
        if trainer.is_global_zero:
            print("\n" + "\n".join(f"{key.removeprefix('sample/'):<24}{value:>10.4f}" for key, value in values.items()))
            print(f"protocol: {protocol}")

    def _prepare(self, trainer: Trainer, module: DDPM) -> None:
        """Loads the extractor, measures the real images and announces the cost, so that errors occur early."""
        self.extractor.to(module.device).eval().requires_grad_(False)
        for is_turn_of_first_rank in (True, False):  # the first rank of a machine may download the weights for all
            if (trainer.local_rank == 0) is is_turn_of_first_rank:
                num_features = num_features_of(self.extractor, module)
            trainer.strategy.barrier()
        real = real_statistics(trainer, module, self.extractor, num_features, self.cache_dir)
        info = ExtractorInfo.of(self.extractor)
        testing = trainer.testing
        sampler = shortened(trainer, module.sampler if testing else self.val_sampler or module.sampler)
        num_images = self.num_samples if testing else self.num_val_samples
        if is_fast_dev_run(trainer):
            num_images = min(num_images, max(2, sampler.chunk_size))
        protocol = MetricsProtocol(
            extractor=str(info),
            resize=info.resize,
            num_generated=num_images,
            num_real=real.num_images,
            real=f"training split of {type(getattr(trainer, 'datamodule', None)).__name__}",
            sampler=type(sampler).__name__,
            num_steps=len(sampler.timesteps(module.denoiser.schedule)) - 1,
            guidance=module.guidance,
            weights=weights_in_use(trainer, module),
            precision=str(trainer.precision),
            seed=self.seed,
            kid_subsets=self.kid_subsets,
            kid_subset_size=min(self.kid_subset_size, num_images, len(real.features)),
            is_splits=self.is_splits,
        )
        self._measurement = _Measurement(info, real, sampler, protocol)
        self._announce(trainer, self._measurement, num_features)

    def _announce(self, trainer: Trainer, measurement: _Measurement, num_features: int) -> None:
        protocol, size = measurement.protocol, measurement.sampler.chunk_size
        num_chunks, calls = -(-protocol.num_generated // size), protocol.calls_per_image
        when = f" in the first validation and every {self.every_n_epochs} epochs" if trainer.state.fn == "fit" else ""
        rank_zero_info(
            f"SampleMetrics draws {protocol.num_generated:,} images{when}: {num_chunks:,} chunks of {size}, "
            f"{calls:,} network calls for each image, {num_chunks * size * calls:,} in total.\nProtocol: {protocol}."
        )
        fewest = min(protocol.num_generated, protocol.num_real)
        if fewest <= num_features:
            rank_zero_warn(
                f"the FID of {fewest:,} images in {num_features:,} features is mostly bias: it needs more than "
                f"{num_features:,} generated and real images, better ten times as many (num_samples, num_val_samples)."
            )
        log_config(trainer, {"sample_metrics": {"test" if trainer.testing else "val": asdict(protocol)}})
        summarize(trainer, f"sample/fid_{measurement.info.name}", "min")

    def _evaluate(self, trainer: Trainer, module: DDPM) -> tuple[dict[str, float], MetricsProtocol]:
        assert self._measurement is not None
        p, real = self._measurement.protocol, self._measurement.real
        sampler, name = self._measurement.sampler, self._measurement.info.name
        features, logits = generated_features(trainer, module, self.extractor, sampler, p.num_generated, p.seed, name)
        broken = int(features.isnan().any(1).sum())
        if broken:
            rank_zero_warn(f"{broken:,} of {p.num_generated:,} generated images are not finite: no FID, KID or IS.")
        values = sample_metrics(real, features, logits, p.kid_subsets, p.kid_subset_size, p.is_splits, p.seed)
        path = RunDirectory.of_trainer(trainer).sample_metrics
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            record = {"command": trainer.state.fn, "global_step": step_of(trainer)}
            with path.open("a") as file:
                file.write(json.dumps(record | {"metrics": values, "protocol": asdict(p)}) + "\n")
        return {f"sample/{metric}_{name}": value for metric, value in values.items()}, p
