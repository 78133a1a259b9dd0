"""FID, KID and IS, during training and in testing."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from typing_extensions import override

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm._internal.files import read_json_lines, write_json_lines
from lit_ddpm._internal.tables import text_table
from lit_ddpm.callbacks.callback import DDPMCallback
from lit_ddpm.callbacks.feature_extraction import FeatureExtraction
from lit_ddpm.callbacks.loggers import log_config, step_of, summarize
from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.metrics.fid import sample_metrics
from lit_ddpm.metrics.inception import InceptionFeatures
from lit_ddpm.training.averaging import averaged_weights, evaluates_average
from lit_ddpm.training.run_directory import RunDirectory
from lit_ddpm.training.sampling import is_fast_dev_run, shortened

FID_HALVES = 20
"""The random halves of the images from which a test estimates standard error and bias of the FID."""


@dataclass(frozen=True)
class MetricsProtocol:
    """How FID, KID and IS are measured; values of different protocols are not comparable."""

    extractor: str  # its name, and the first digits of the SHA-256 of its class and weights
    resize: str  # how the extractor resizes images
    num_generated: int
    num_real: int
    real: str  # the source of the real images
    sampler: str
    num_steps: int  # reverse steps for an image
    guidance: float  # the scale of classifier-free guidance; 1 is none
    conditions: str  # the source of the conditions that are images
    weights: str  # "averaged" or "raw"
    precision: str  # the Trainer's, in which the images are drawn
    seed: int  # of the generated images, of the KID's subsets and of the IS's splits
    kid_subsets: int
    kid_subset_size: int
    is_splits: int

    def __str__(self) -> str:
        """Returns the protocol in one line."""
        guidance = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        conditions = f", conditions of the {self.conditions}" if self.conditions != "none" else ""
        return (
            f"extractor {self.extractor}, resize {self.resize}, {self.num_generated:,} generated and {self.num_real:,} "
            f"real images ({self.real}), {self.sampler} with {self.num_steps} steps{guidance}{conditions}, "
            f"{self.weights} weights, precision {self.precision}, seed {self.seed}, KID of {self.kid_subsets} x "
            f"{self.kid_subset_size:,}, IS splits {self.is_splits}"
        )


class SampleMetrics(DDPMCallback):
    """Draws images and measures FID, KID and IS against the training images.

    They are logged as ``sample/fid_<extractor>``, ``sample/kid_<extractor>``, ``sample/kid_std_<extractor>`` and, if
    the extractor classifies, ``sample/is_<extractor>``; in ``test`` also ``sample/fid_se_<extractor>`` and
    ``sample/fid_infinite_<extractor>``, the error of the FID and its value without bias, see `sample_metrics`. Each
    evaluation adds a line with its protocol to ``sample_metrics.jsonl`` in the run directory. A fit evaluates in its
    first validation and then every n-th epoch, with the averaged weights if there is an `EMA`; ``validate`` and
    ``test`` evaluate once. The images are drawn on all ranks; the values do not depend on their number, and the
    training does not depend on the evaluation.

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
        ValueError: At the start of a command, if the extractor does not accept the images of the data, or a cached file
            belongs to other data or another extractor.
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

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_evaluated = False
        self._prepare(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._prepare(trainer, pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The first validation always evaluates, so that a checkpoint callback can monitor the metric in any of them.
        if not trainer.sanity_checking and (self.is_due(trainer) or not self._has_evaluated):
            with averaged_weights(trainer, pl_module, self):
                values = self._evaluate(trainer, pl_module)
            self._has_evaluated = True
            rank_zero_info(", ".join(f"{key} = {value:.4f}" for key, value in values.items()) + f" ({self._protocol})")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self._evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            rows = [[key.removeprefix("sample/"), f"{value:.4f}"] for key, value in values.items()]
            print(f"\n{text_table(rows, widths=(22, 10))}")
            print(f"protocol: {self._protocol}")

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads the extractor, measures the real images and announces the cost, so that errors occur early."""
        module = self.ddpm(pl_module)
        num_images = self.num_samples if trainer.testing else self.num_val_samples
        sampler = module.sampler if trainer.testing else self.val_sampler or module.sampler
        sampler.timesteps(module.denoiser.schedule)  # refuses more steps than T
        self._sampler = shortened(trainer, sampler)
        if is_fast_dev_run(trainer):
            num_images = min(num_images, max(2, self._sampler.chunk_size))
        self._extraction = FeatureExtraction(trainer, module, self.extractor)
        self._real = self._extraction.real(self.cache_dir)
        self._protocol = MetricsProtocol(
            extractor=str(self._extraction.info),
            resize=self._extraction.info.resize,
            num_generated=num_images,
            num_real=self._real.num_images,
            real=f"training split of {type(self._extraction.data).__name__}",
            sampler=type(sampler).__name__,
            num_steps=len(self._sampler.timesteps(module.denoiser.schedule)) - 1,
            guidance=module.guidance.scale,
            conditions="none" if module.held_out is None else module.held_out.name,
            weights="averaged" if evaluates_average(trainer, module) else "raw",
            precision=str(trainer.precision),
            seed=self.seed,
            kid_subsets=self.kid_subsets,
            kid_subset_size=min(self.kid_subset_size, num_images, len(self._real.features)),
            is_splits=self.is_splits,
        )
        self._announce(trainer)

    def _announce(self, trainer: Trainer) -> None:
        protocol, chunk_size, num_features = self._protocol, self._sampler.chunk_size, self._extraction.num_features
        num_chunks = -(-protocol.num_generated // chunk_size)
        calls = protocol.num_steps * (1 if protocol.guidance == 1 else 2)  # guidance takes two at each step
        when = f" in the first validation and every {self.every_n_epochs} epochs" if trainer.state.fn == "fit" else ""
        rank_zero_info(
            f"SampleMetrics draws {protocol.num_generated:,} images{when}: {num_chunks:,} chunks of {chunk_size}, "
            f"{calls:,} network calls for each image, {num_chunks * chunk_size * calls:,} in total.\n"
            f"Protocol: {protocol}."
        )
        fewest = min(protocol.num_generated, protocol.num_real)
        if fewest <= num_features:
            rank_zero_warn(
                f"the FID of {fewest:,} images in {num_features:,} features is mostly bias: it needs more than "
                f"{num_features:,} generated and real images, better ten times as many (num_samples, num_val_samples)."
            )
        log_config(trainer, {"sample_metrics": {"test" if trainer.testing else "val": asdict(protocol)}})
        summarize(trainer, f"sample/fid_{self._extraction.info.name}", "min")

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Measures the metrics, logs them and adds them to the file; returns them by the keys of the logs."""
        p = self._protocol
        features, logits = self._extraction.generated(self._sampler, p.num_generated, p.seed)
        broken = int(features.isnan().any(1).sum())
        if broken:
            rank_zero_warn(f"{broken:,} of {p.num_generated:,} generated images are not finite: no FID, KID or IS.")
        settings = p.kid_subsets, p.kid_subset_size, p.is_splits, p.seed
        metrics = sample_metrics(self._real, features, logits, *settings, FID_HALVES if trainer.testing else 0)
        path = RunDirectory.of_trainer(trainer).sample_metrics
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            record: dict[str, Any] = {"command": trainer.state.fn, "global_step": step_of(trainer)}
            record |= {"metrics": metrics, "protocol": asdict(p)}
            write_json_lines(path, [*read_json_lines(path), record])
        values = {f"sample/{metric}_{self._extraction.info.name}": value for metric, value in metrics.items()}
        pl_module.log_dict(values)
        return values
