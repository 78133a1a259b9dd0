"""FID, KID and IS while training and in testing, each with the protocol that it was measured by."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_ddpm._internal.checks import check_at_least
from lit_ddpm.callbacks.loggers import log_config, step_of, summarize
from lit_ddpm.callbacks.real_images import real_statistics
from lit_ddpm.data.pixels import to_uint8
from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.metrics.features import extract, identity_of, name_of, resize_of
from lit_ddpm.metrics.fid import sample_metrics
from lit_ddpm.metrics.inception import InceptionFeatures
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import run_directory
from lit_ddpm.training.sampling import draw, is_quick, sampler_for


@dataclass(frozen=True)
class Protocol:
    """How figures were measured; figures of different protocols are not comparable.

    Attributes:
        extractor: The extractor's name and the beginning of the SHA-256 of its class and weights.
        resize: What the extractor does to the size of an image.
        num_generated: The number of generated images.
        num_real: The number of real images.
        real: Which images they are.
        sampler: The sampler's class.
        num_steps: Reverse steps for an image.
        guidance: The scale of classifier-free guidance; 1 is none.
        weights: ``"averaged"`` or ``"raw"``.
        precision: The Trainer's precision, which drawing uses.
        seed: The seed of the generated images, of the KID's subsets and of the IS's parts.
        kid_subsets: The subsets of the KID.
        kid_subset_size: The images of a subset.
        is_splits: The parts that the IS is averaged over.
    """

    extractor: str
    resize: str
    num_generated: int
    num_real: int
    real: str
    sampler: str
    num_steps: int
    guidance: float
    weights: str
    precision: str
    seed: int
    kid_subsets: int
    kid_subset_size: int
    is_splits: int

    def __str__(self) -> str:
        """One line."""
        guided = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        return (
            f"extractor {self.extractor}, resize {self.resize}, {self.num_generated:,} generated and {self.num_real:,} "
            f"real images ({self.real}), {self.sampler} with {self.num_steps} steps{guided}, {self.weights} weights, "
            f"precision {self.precision}, seed {self.seed}, KID of {self.kid_subsets} x {self.kid_subset_size:,}, IS "
            f"splits {self.is_splits}"
        )


class SampleMetrics(Callback):
    """Draws images and measures them against the training images by FID, KID and IS.

    They are logged as ``sample/fid_<extractor>``, ``sample/kid_<extractor>``, ``sample/kid_std_<extractor>`` and, if
    the extractor classifies, ``sample/is_<extractor>``; ``sample_metrics.jsonl`` in the run's directory has a line for
    each evaluation, with its protocol. A fit evaluates in its first validation and then every so many epochs, with the
    averaged weights if there is an `EMA`; ``validate`` and ``test`` evaluate once. All processes share the drawing; the
    figures do not depend on their number, nor training on the figures.

    The real images are those of the data module's ``reference_dataloader()``: the training split in order, without
    augmentation. Their statistics are kept in a file if the data module has a ``fingerprint()``.

    Args:
        extractor: Any module from uint8 images to features, see `lit_ddpm.features`; `InceptionFeatures` if None.
        num_samples: Images to draw in ``test``.
        num_val_samples: Images to draw in a validation.
        val_sampler: How to draw in a validation; by the module's own sampler if None, as in ``test``.
        every_n_epochs: Evaluate in the validation of every so many epochs.
        seed: The seed of the images, of the KID's subsets and of the IS's parts.
        kid_subsets: The subsets that the KID is averaged over.
        kid_subset_size: The images of a subset; fewer if there are not as many.
        is_splits: The parts that the IS is averaged over.
        cache_dir: Where the statistics of real images are kept; ``lit_ddpm`` in torch's hub directory if None.

    Raises:
        ValueError: If a number is too small; at the start of a command, if the extractor cannot be used on the data's
            images, or a file of statistics is not of this data and extractor.
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
        check_at_least(self, 1, every_n_epochs=every_n_epochs, kid_subsets=kid_subsets, is_splits=is_splits)
        check_at_least(
            self, 2, num_samples=num_samples, num_val_samples=num_val_samples, kid_subset_size=kid_subset_size
        )
        self.extractor = extractor if extractor is not None else InceptionFeatures()
        self.num_samples = num_samples
        self.num_val_samples = num_val_samples
        self.val_sampler = val_sampler
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self.kid_subsets = kid_subsets
        self.kid_subset_size = kid_subset_size
        self.is_splits = is_splits
        self.cache_dir = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "lit_ddpm"
        self._has_evaluated = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the module can sample, and with how many steps."""
        if not isinstance(pl_module, DDPM):
            raise ValueError(f"SampleMetrics draws from a DDPM, not from a {type(pl_module).__name__}.")
        (self.val_sampler or pl_module.sampler).timesteps(pl_module.denoiser.schedule)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the real images, and says how much work is ahead."""
        self._has_evaluated = False
        self._prepare(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does the same for ``validate``."""
        if trainer.state.fn == "validate":
            self._prepare(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does the same for ``test``."""
        self._prepare(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates in the epochs for it, and in the first, so that checkpoints can go by the last figures in any."""
        due = trainer.state.fn == "validate" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if not trainer.sanity_checking and (due or not self._has_evaluated):
            values = self._evaluate(trainer, pl_module)
            pl_module.log_dict(values)
            self._has_evaluated = True
            rank_zero_info(", ".join(f"{key} = {value:.4f}" for key, value in values.items()) + f" ({self._protocol})")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates, and prints the figures."""
        values = self._evaluate(trainer, pl_module)
        pl_module.log_dict(values)
        if trainer.is_global_zero:
            print("\n" + "\n".join(f"{key.removeprefix('sample/'):<24}{value:>10.4f}" for key, value in values.items()))
            print(f"protocol: {self._protocol}")

    def _prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Everything that can go wrong, before the work begins."""
        assert isinstance(module, DDPM)
        self.extractor.to(module.device).eval().requires_grad_(False)
        for turn in (True, False):  # the first process of a machine may download weights, which the others then find
            if (trainer.local_rank == 0) is turn:
                num_features = self._probe(module)
            trainer.strategy.barrier()
        self._real = real_statistics(trainer, module, self.extractor, num_features, self.cache_dir)
        testing = trainer.testing
        sampler = module.sampler if testing or self.val_sampler is None else self.val_sampler
        self._sampler = sampler_for(trainer, sampler)
        count = self.num_samples if testing else self.num_val_samples
        if is_quick(trainer):
            count = min(count, max(2, self._sampler.chunk_size))
        fitting = trainer.state.fn == "fit"
        callbacks = getattr(trainer, "callbacks", [])
        averages = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        data = type(getattr(trainer, "datamodule", None)).__name__
        self._protocol = Protocol(
            extractor=identity_of(self.extractor),
            resize=resize_of(self.extractor),
            num_generated=count,
            num_real=self._real.num_images,
            real=f"training split of {data}",
            sampler=type(self._sampler).__name__,
            num_steps=len(self._sampler.timesteps(module.denoiser.schedule)) - 1,
            guidance=module.guidance,
            weights="averaged" if (averages if fitting else module.averaged) else "raw",
            precision=str(trainer.precision),
            seed=self.seed,
            kid_subsets=self.kid_subsets,
            kid_subset_size=min(self.kid_subset_size, count, len(self._real.features)),
            is_splits=self.is_splits,
        )
        self._announce(trainer, num_features)

    def _probe(self, module: DDPM) -> int:
        """The number of features, from two grey images, so that an unfit extractor is an error now."""
        if module.image_shape is None:
            raise ValueError("SampleMetrics needs a data module with image_shape = (C, H, W).")
        with torch.random.fork_rng(devices=[]):  # making a network draws its first weights
            images = torch.full((2, *module.image_shape), 128, dtype=torch.uint8, device=module.device)
            return extract(self.extractor, images)[0].shape[1]

    def _announce(self, trainer: Trainer, num_features: int) -> None:
        p, size = self._protocol, self._sampler.chunk_size
        chunks, calls = -(-p.num_generated // size), p.num_steps * (1 if p.guidance == 1 else 2)
        when = f" in the first validation and every {self.every_n_epochs} epochs" if trainer.state.fn == "fit" else ""
        rank_zero_info(
            f"SampleMetrics draws {p.num_generated:,} images{when}: {chunks:,} chunks of {size}, "
            f"{calls:,} network calls an image, {chunks * size * calls:,} in all.\nIts protocol: {p}."
        )
        fewest = min(p.num_generated, p.num_real)
        if fewest <= num_features:
            rank_zero_warn(
                f"the FID of {fewest:,} images in {num_features:,} features is mostly bias: more than {num_features:,} "
                "generated and real images would do, ten times as many is better (num_samples, num_val_samples)."
            )
        log_config(trainer, {"sample_metrics": {"test" if trainer.testing else "val": asdict(p)}})
        summarize(trainer, f"sample/fid_{name_of(self.extractor)}", "min")

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        assert isinstance(module, DDPM)
        p, name = self._protocol, name_of(self.extractor)

        def measure(images: Tensor) -> tuple[Tensor, Tensor | None]:
            finite = torch.isfinite(images).flatten(1).all(1)
            features, logits = extract(self.extractor, to_uint8(images.nan_to_num(), module.levels))
            return features.where(finite[:, None], torch.nan).cpu(), None if logits is None else logits.cpu()

        chunks = draw(trainer, module, p.num_generated, p.seed, self._sampler, measure, f"drawing for fid_{name}")
        features = torch.cat([chunk[0] for chunk in chunks])
        all_logits = [chunk[1] for chunk in chunks if chunk[1] is not None]
        logits = torch.cat(all_logits) if all_logits else None
        broken = int(features.isnan().any(1).sum())
        if broken:
            rank_zero_warn(f"{broken:,} of {p.num_generated:,} generated images are not finite: no FID, KID or IS.")
        values = sample_metrics(self._real, features, logits, p.kid_subsets, p.kid_subset_size, p.is_splits, p.seed)
        path = run_directory(trainer) / "sample_metrics.jsonl"
        if trainer.is_global_zero and not is_quick(trainer):
            figures = {"metrics": values, "protocol": asdict(p)}
            record = {"command": trainer.state.fn, "global_step": step_of(trainer), **figures}
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return {f"sample/{metric}_{name}": value for metric, value in values.items()}
