"""The LightningModule: it composes the parts, trains, and logs. The mathematics is elsewhere."""

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_ddpm._internal.random import reseed, training_seed
from lit_ddpm.data.loader import Progress
from lit_ddpm.diffusion.decoder import Decoder, DiscretizedGaussian
from lit_ddpm.diffusion.denoiser import Denoiser, Prediction, Variance
from lit_ddpm.diffusion.guidance import GuidedDenoiser
from lit_ddpm.diffusion.ledger import TERMS, Report
from lit_ddpm.diffusion.objective import Objective, PredictionMSE, kl_forms
from lit_ddpm.diffusion.parametrization import EpsParametrization, Parametrization
from lit_ddpm.diffusion.sampler import AncestralSampler, Sampler
from lit_ddpm.diffusion.schedule import LinearSchedule, Schedule
from lit_ddpm.diffusion.timesteps import TimestepSampler, UniformTimesteps
from lit_ddpm.nn.unet import UNet
from lit_ddpm.training.checkpoint import check_weights_are_finite, check_weights_fit, constructor_arguments
from lit_ddpm.training.distributed import hold_whole, shard
from lit_ddpm.training.evaluation import BoundEvaluation, Split
from lit_ddpm.training.optimization import Optimization
from lit_ddpm.training.run_directory import run_directory
from lit_ddpm.training.setup import check_data, faster_with

OF_THE_MACHINE = ["compile", "channels_last"]
"""Arguments that make no other model, and so belong to each command rather than to a checkpoint."""


class DDPM(Optimization):
    """A denoising diffusion model to train, measure and sample with Lightning.

    Every slot has a default: together, the model of Ho et al. 2020 (eps, the uniform eps-MSE, 1,000 linear steps) with
    a small `UNet` for one-channel images. A subclass overrides `unpack_batch` for its own batches, passes its own
    objects for the slots, or uses any Lightning hook.

    Args:
        network: Any module with ``forward(x_t, t, **cond)``.
        schedule: The forward process.
        parametrization: What the network's output stands for.
        objective: What training minimises. A `PosteriorKL` without a decoder gets the module's.
        timesteps: Which timesteps a batch visits.
        decoder: The likelihood at t = 1. If None, a `DiscretizedGaussian` with the data module's ``levels``, or 256.
        sampler: How images are made.
        variance: The variance of ``p_theta``: ``"posterior"``, ``"beta"`` or ``"learned"``, for which a network has
            twice the output channels.
        clip: Clip the estimate of x_0 to [-1, 1] in sampler and bound; set it to False for data of another range.
        label_dropout: The share of training labels that are left out, so that the network learns to do without: what
            guidance needs.
        guidance: The scale of classifier-free guidance in sampling; 1 for none, see `GuidedDenoiser`.
        num_val_timesteps: Network calls an image for the estimate of the bound in validation; all T if None or if T is
            less. Testing always uses all.
        max_skipped_steps: How many steps of a fit may be left out because their gradients are not finite.
        compile: Compile the network with `torch.compile`: the first steps take a minute, the others less time.
        channels_last: Lay images out channels last, which convolutions in low precision are faster with. A checkpoint
            knows neither, so both can be chosen anew each time.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes a learning-rate scheduler, stepped after every optimizer step, from the optimizer.

    Attributes:
        image_shape: The shape of an image, ``(C, H, W)``; None until the module has seen data.
        averaged: Whether the weights that it holds now are averaged ones, see `EMA`.
        trained_steps: The optimizer steps behind the weights that a fit left or a checkpoint gave.
        skipped_steps: The steps of this fit that were left out because their gradients were not finite.
        last_kl: The timesteps and the KL in nats per dimension of the last training batch's samples with t >= 2.
        last_report: What the last validation or test found.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        schedule: Schedule | None = None,
        parametrization: Parametrization | None = None,
        objective: Objective | None = None,
        timesteps: TimestepSampler | None = None,
        decoder: Decoder | None = None,
        sampler: Sampler | None = None,
        variance: Variance = "posterior",
        clip: bool = True,
        label_dropout: float = 0.0,
        guidance: float = 1.0,
        num_val_timesteps: int | None = 32,
        max_skipped_steps: int = 10,
        compile: bool = False,
        channels_last: bool = False,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-4, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, max_skipped_steps)
        self._save_arguments()
        self.denoiser = Denoiser(
            network if network is not None else UNet(),
            schedule if schedule is not None else LinearSchedule(),
            parametrization if parametrization is not None else EpsParametrization(),
            variance,
            clip,
        )
        self.objective = objective if objective is not None else PredictionMSE()
        self.objective.check(self.denoiser)
        self.timesteps = timesteps if timesteps is not None else UniformTimesteps()
        self._compiled, self._channels_last = compile, channels_last
        if channels_last:
            self.denoiser.network.to(memory_format=torch.channels_last)
        if compile:
            self.denoiser.network.compile()
        self.decoder = decoder
        self.sampler = sampler if sampler is not None else AncestralSampler()
        self.sampler.timesteps(self.denoiser.schedule)  # more steps than T is an error now, not at the first picture
        if num_val_timesteps is not None and num_val_timesteps < 2:
            raise ValueError(f"num_val_timesteps = {num_val_timesteps} must be at least 2, or None for all.")
        self.num_val_timesteps = num_val_timesteps
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout = {label_dropout} must be in [0, 1).")
        if label_dropout > 0 and self.num_classes is None:
            raise ValueError(f"label_dropout = {label_dropout} needs a network with labels: set its num_classes.")
        self.label_dropout = label_dropout
        self.guidance = guidance
        _ = self.sampling_denoiser  # guidance without labels is an error now
        self.image_shape: tuple[int, ...] | None = None
        self.averaged = False
        self.trained_steps = 0
        self.last_kl: tuple[Tensor, Tensor] | None = None
        self.last_report: Report | None = None
        self._data_levels: int | None = None
        self._observed: tuple[int, Tensor, Tensor] | None = None  # batch index, timesteps and losses
        # The second moments of the KL terms that the last validation found, and those that it began with.
        self._found_moment: Tensor | None = None
        self._used_moment: Tensor | None = None

    # --- what users override

    def unpack_batch(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """Splits a batch into the images ``[B, C, H, W]`` in [-1, 1] and keyword arguments of the network.

        By default a batch is a tensor, or a tuple or list that starts with one. A network with ``num_classes`` gets the
        second entry as ``label``; the rest is left out.
        """
        if not isinstance(batch, tuple | list):
            return batch, {}
        return batch[0], {} if self.num_classes is None else {"label": batch[1]}

    def sample_cond(self, index: Tensor) -> dict[str, Any]:
        """Keyword arguments of the network for generated images, by their numbers, int64 ``[B]``.

        By default image number i of a network with labels is of class ``i % num_classes``.
        """
        return {} if self.num_classes is None else {"label": index % self.num_classes}

    # --- what users call

    def sample(
        self, num_images: int, seed: int = 0, first_index: int = 0, sampler: Sampler | None = None, **cond: Any
    ) -> Tensor:
        """Images number `first_index` and on of `seed`, ``[num_images, C, H, W]`` in about [-1, 1].

        `sampler` stands in for the module's own, and `cond` goes to the network, in place of `sample_cond`.

        The weights are those the module holds: the averaged ones if it was loaded from a checkpoint written with `EMA`.

        Raises:
            ValueError: If the module has seen no data and so does not know the shape of an image, or a label is none of
                the network's.
        """
        if self.image_shape is None:
            raise ValueError(
                "image_shape is unknown until the module has seen data: load a checkpoint, or set image_shape."
            )
        sampler = sampler if sampler is not None else self.sampler
        cond = self.sample_cond(torch.arange(first_index, first_index + num_images)) | cond
        label = cond.get("label")
        if (
            label is not None
            and self.num_classes is not None
            and not set(label.tolist()) <= set(range(self.num_classes))
        ):
            raise ValueError(f"label = {label.tolist()} must be 0 to {self.num_classes - 1}.")
        cond = {key: x.to(self.device) if isinstance(x, Tensor) else x for key, x in cond.items()}
        return sampler(self.sampling_denoiser, (num_images, *self.image_shape), seed, first_index, **cond)

    @property
    def num_classes(self) -> int | None:
        """The number of labels that the network takes, or None."""
        return getattr(self.denoiser.network, "num_classes", None)

    @property
    def sampling_denoiser(self) -> Denoiser:
        """The denoiser that sampling uses: a guided one, if there is guidance."""
        return self.denoiser if self.guidance == 1 else GuidedDenoiser(self.denoiser, self.guidance)

    @property
    def levels(self) -> int:
        """The grey levels of the data, for pictures; 256 for real-valued data."""
        return (self.decoder.levels if self.decoder is not None else self._data_levels) or 256

    # --- setup

    def setup(self, stage: str) -> None:
        """Takes from the data module what nobody set, and checks the rest against it.

        Raises:
            ValueError: If they do not fit together.
        """
        data = getattr(self.trainer, "datamodule", None)
        if stage == "predict":
            return
        if self.decoder is None:
            self.decoder = DiscretizedGaussian(getattr(data, "levels", None) or self.levels)
        self._data_levels = self.decoder.levels
        if getattr(self.objective, "decoder", self.decoder) is None:
            self.objective = copy.copy(self.objective)
            # any objective may have a decoder, and not every one has
            self.objective.decoder = self.decoder  # type: ignore[attr-defined]
        check_data(data, self.denoiser, self.decoder)
        shape = getattr(data, "image_shape", None)
        self.image_shape = self.image_shape if shape is None else tuple(shape)

    def configure_model(self) -> None:
        """Shards the network if there is a `ModelParallelStrategy`, which sets `device_mesh`."""
        if self.device_mesh is not None:
            shard(self.denoiser.network, self.device_mesh["data_parallel"])

    # --- training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One network call; the loss is the objective, averaged over the batch, and both forms of the KL are logged.

        All randomness of the step (t, eps, dropout) is a function of (seed, epoch, batch index, rank).
        """
        self._learn()
        x_0, cond = self.unpack_batch(batch)
        if self.image_shape is None:
            self.image_shape = tuple(x_0.shape[1:])
        if batch_idx == 0 and (decoder := getattr(self.objective, "decoder", None)) is not None:
            decoder.check(x_0)
        reseed(x_0.device, "train", training_seed(), self.current_epoch, batch_idx, self.global_rank)
        if self.label_dropout > 0:
            dropped = (torch.rand(len(x_0)) < self.label_dropout).to(x_0.device)
            cond["label"] = cond["label"].masked_fill(dropped, self.num_classes or 0)
        t, weight = self.timesteps.sample(len(x_0), self.denoiser.schedule.num_steps, None)
        pred = self.denoiser.predict(x_0, t, torch.randn_like(x_0), **cond)
        losses = self.objective(self.denoiser, pred)
        if self.timesteps.learns:
            self._observed = (batch_idx, *self._of_all_processes(t, losses.detach()))
        loss = (weight.to(losses) * losses).mean()
        self.last_losses = (t, losses.detach())
        self.log("train/loss", loss, prog_bar=True, batch_size=len(x_0))
        self.log_dict(self._both_forms(pred, weight), batch_size=len(x_0))
        return loss.float()

    def _learn(self) -> None:
        """Tells the timestep sampler the losses of the batch before: a step that is cut off must not count."""
        if self._observed is not None:
            self.timesteps.update(*self._observed[1:])
            self._observed = None

    def _of_all_processes(self, t: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The timesteps and losses of all processes, on the CPU, in the same order on each."""
        both = torch.stack([t.to(losses), losses], dim=1)
        gathered = self.all_gather(both)
        assert isinstance(gathered, Tensor)
        t, losses = gathered.reshape(-1, 2).T.cpu()
        return t.round().long(), losses

    @torch.no_grad()
    def _both_forms(self, pred: Prediction, weight: Tensor) -> dict[str, Tensor]:
        """The two forms of the KL over the samples with t >= 2; ``form_gap`` is their largest relative difference."""
        rows = (pred.t >= 2).nonzero().flatten()
        if len(rows) == 0:
            return {}
        kl, kl_from_x0_mse, x0_mse = kl_forms(self.denoiser, pred.select(rows))
        self.last_kl = (pred.t[rows], kl)
        weight = weight[rows].to(kl)
        values = {"train/kl": (weight * kl).mean(), "train/x0_mse": (weight * x0_mse).mean()}
        if self.denoiser.variance != "learned":  # whose KL is more than a weighted error
            values["train/kl_from_x0_mse"] = (weight * kl_from_x0_mse).mean()
            values["train/form_gap"] = ((kl - kl_from_x0_mse).abs() / kl.clamp(min=1e-30)).max()
        return values

    def on_fit_start(self) -> None:
        """Says in one line what would be faster on this machine; it changes nothing by itself."""
        num_pixels = math.prod(self.image_shape[1:]) if self.image_shape is not None else 0
        overlays = faster_with(self.trainer, num_pixels, self._compiled, self._channels_last)
        if overlays:
            names = " ".join(f"--config configs/trainer/{name}.yaml" for name in overlays)
            rank_zero_info(f"On this machine training would be faster with {names}")

    def on_train_start(self) -> None:
        """The weights that training goes on from are no average, whatever the checkpoint's were."""
        self.averaged = False
        self.skipped_steps = 0
        self._observed = None

    def on_train_end(self) -> None:
        """Notes down how far it came."""
        self._learn()
        self.trained_steps = self.trainer.global_step

    # --- evaluation

    def new_evaluation(self, split: Split, histogram: Tensor | None = None) -> BoundEvaluation:
        """An evaluation of a split: with `num_val_timesteps` calls an image in validation, with all T in testing."""
        assert self.decoder is not None
        num_steps = self.denoiser.schedule.num_steps
        num_calls = num_steps if split == "test" else min(self.num_val_timesteps or num_steps, num_steps)
        return BoundEvaluation(
            self.trainer, self.denoiser, self.decoder, split, num_calls, self._used_moment, histogram
        )

    def on_validation_start(self) -> None:
        """Takes what the last validation of this fit found, which makes this one more precise.

        A checkpoint keeps what its own validation began with, so that validating it again gives the same numbers.
        """
        hold_whole(self.denoiser.network, True)
        if self.trainer.state.fn == "fit":
            self._used_moment = self._found_moment

    def on_validation_end(self) -> None:
        """Goes back to a share of the weights, if they are sharded."""
        hold_whole(self.denoiser.network, False)

    def on_test_start(self) -> None:
        """Takes the whole network, if it is sharded."""
        hold_whole(self.denoiser.network, True)

    def on_predict_start(self) -> None:
        """Takes the whole network, if it is sharded."""
        hold_whole(self.denoiser.network, True)

    def on_validation_epoch_start(self) -> None:
        """Begins an evaluation."""
        self._evaluation = self.new_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Begins an evaluation, with the histogram baseline where the data has one; says how much work is ahead."""
        histogram = getattr(getattr(self.trainer, "datamodule", None), "train_histogram", None)
        discrete = self.decoder is not None and self.decoder.levels is not None
        self._evaluation = self.new_evaluation("test", histogram() if discrete and histogram is not None else None)
        calls, images = self.denoiser.schedule.num_steps, self._evaluation.num_images
        if images is not None:
            rank_zero_info(f"The full bound takes {calls:,} network calls for each of {images:,} images.")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Adds a batch to the evaluation."""
        self._evaluation.update(*self.unpack_batch(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Adds a batch to the evaluation."""
        self._evaluation.update(*self.unpack_batch(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the bound."""
        self._log_bound("val")

    def on_test_epoch_end(self) -> None:
        """Logs the bound, prints the ledger and writes it to ``ledger.json`` in the run's directory."""
        report = self._log_bound("test")
        path = run_directory(self.trainer) / "ledger.json"
        if self.trainer.is_global_zero:
            report.save(path)
            print(f"\n{report.table()}\nwritten to {path}")

    def _log_bound(self, split: Split) -> Report:
        report = self.last_report = self._evaluation.report()
        if split == "val" and not self.trainer.sanity_checking:
            self._found_moment = self._evaluation.second_moment()
        del self._evaluation  # it holds the Trainer, which a copy of this module must not
        key = report.key(split)
        values: dict[str, float] = {}
        for term in TERMS:
            entry, name = report.terms[term], key if term == "total" else f"{key}_{term}"
            values |= {name: entry.value, f"{name}_se_images": entry.se_images}
            if term != "prior":  # which is exact
                values[f"{name}_se_noise"] = entry.se_noise
        if report.baseline is not None:
            values[f"{key}_histogram"] = report.baseline.value
        if self.trainer.state.fn != "fit":
            values["step"] = max(self.trained_steps - 1, 0)  # where to log: Lightning's name, and it counts from 0
        self.log_dict(values)
        return report

    # --- prediction

    def predict_step(self, batch: Sequence[int], batch_idx: int) -> Tensor:
        """Images for ``(seed, first index, number)``, see `lit_ddpm.trainer.Trainer.predict`."""
        seed, first_index, count = (int(number) for number in batch)
        return self.sample(count, seed, first_index)

    # --- checkpoints

    def _save_arguments(self) -> None:
        """Writes the constructor's arguments into ``hparams``, as LightningCLI parsed them or as plain data."""
        frame = inspect.currentframe()
        frame = frame.f_back if frame is not None else None
        self._unsaved_arguments: list[str] = []
        try:
            self.save_hyperparameters("_instantiator", frame=frame)  # only LightningCLI has given this one
        except KeyError:
            assert frame is not None
            hparams, self._unsaved_arguments = constructor_arguments(frame)
            self.save_hyperparameters({k: v for k, v in hparams.items() if k not in OF_THE_MACHINE}, frame=frame)
        else:
            self.save_hyperparameters(frame=frame, ignore=OF_THE_MACHINE)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what an image is like, and refuses to save a model that is broken."""
        check_weights_are_finite(self)
        if self._observed is not None and self._observed[0] < Progress(self.trainer).batches:
            self._learn()
        checkpoint["image_shape"] = None if self.image_shape is None else list(self.image_shape)
        checkpoint["levels"] = self._data_levels
        checkpoint["timesteps"] = self.timesteps.state_dict()
        checkpoint["moments"] = [self._used_moment, self._found_moment]
        checkpoint["unsaved_arguments"] = self._unsaved_arguments

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the weights fit the network, and restores what an image is like."""
        if "state_dict" in checkpoint:  # which a strategy that shards has loaded itself
            check_weights_fit(self, checkpoint)
        shape = checkpoint.get("image_shape")
        self.image_shape = self.image_shape if shape is None else tuple(shape)
        if checkpoint.get("timesteps"):
            self.timesteps.load_state_dict(checkpoint["timesteps"])
        moments = checkpoint.get("moments", [None, None])
        fit = all(m is None or len(m) == self.denoiser.schedule.num_steps - 1 for m in moments)
        self._used_moment, self._found_moment = moments if fit else (None, None)
        self.averaged = "weights" in checkpoint
        self.trained_steps = checkpoint.get("global_step", 0)
        self._data_levels = checkpoint.get("levels")
