"""DDPM, the LightningModule: the slots of a diffusion model and Lightning's step methods."""

from typing import Any

import torch
from lightning import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_ddpm._internal.random import reseed, training_seed
from lit_ddpm.data.pixels import Standardization
from lit_ddpm.data.protocols import DataInfo, HasHeldOut
from lit_ddpm.diffusion.condition import Condition
from lit_ddpm.diffusion.decoder import Decoder
from lit_ddpm.diffusion.denoiser import Denoiser
from lit_ddpm.diffusion.guidance import GuidedDenoiser, LabelDropout
from lit_ddpm.diffusion.network import NetworkTime
from lit_ddpm.diffusion.objective import Objective, PredictionMSE, check_training, training_loss
from lit_ddpm.diffusion.parametrization import EpsParametrization, Parametrization
from lit_ddpm.diffusion.sampler import AncestralSampler, Sampler
from lit_ddpm.diffusion.schedule import Schedule
from lit_ddpm.diffusion.schedules import LinearSchedule
from lit_ddpm.diffusion.timesteps import TimestepSampler, UniformTimesteps
from lit_ddpm.diffusion.variance import Variance
from lit_ddpm.nn.unet import UNet
from lit_ddpm.training.checkpoint import CheckpointedModule, warn_of_lost_optimization
from lit_ddpm.training.cost import CostReport
from lit_ddpm.training.distributed import GatherFullWeights, shard
from lit_ddpm.training.evaluation import BoundEvaluator, LogBound
from lit_ddpm.training.feedback import ImportanceFeedback
from lit_ddpm.training.hparams import EXECUTION_ONLY
from lit_ddpm.training.kl_metrics import KLMetrics, kl_metrics
from lit_ddpm.training.optimization import GradientGuard, OptimizerFactory
from lit_ddpm.training.sampling import HeldOut, SampleChunk, chunk_loader, complete_cond, held_out_cond
from lit_ddpm.training.setup import DataDefaults, check_data


class DDPM(CheckpointedModule):
    """A denoising diffusion model to train, measure and sample with Lightning.

    Every slot has a default. Together they are the model of Ho et al. 2020 (eps, uniform eps-MSE, 1,000 linear steps)
    with a small `UNet` for one-channel images. A subclass overrides `unpack_batch` for other batches, passes other
    objects for the slots, or uses any Lightning hook; one that overrides ``configure_callbacks`` extends the list.

    Args:
        network: Any module with ``forward(x_t, t, **cond)``.
        schedule: The forward process.
        parametrization: The meaning of the network's output.
        objective: The training loss. A `PosteriorKL` without a decoder gets that of the module.
        timesteps: The distribution of t in a training batch.
        decoder: The likelihood at t = 1; if None, a `DiscretizedGaussian` with the data module's ``levels``, or 256.
        sampler: The sampler.
        condition: Computes the condition of a network with ``cond_channels`` from the images, see `unpack_batch`.
        variance: The variance of ``p_theta``, see `Denoiser`; ``"learned"`` needs twice the output channels.
        clip: Clip the estimate of x_0 to [-1, 1] in sampler and bound; if None, for pixel levels and not for real
            values.
        time: What the network gets as t, see `NetworkTime`; ``"log_snr"`` does not depend on T.
        sigma_data: The standard deviation of the data, to scale the input of the network, see `Denoiser`.
        label_dropout: The probability of dropping a training label; classifier-free guidance needs it.
        guidance: The scale of classifier-free guidance in sampling, see `GuidedDenoiser`; 1 is without guidance.
        num_val_timesteps: Network calls for each image in validation; all T if None. Testing always uses all T.
        max_skipped_steps: The number of steps of a fit that may be skipped because their gradients are not finite.
        compile: Compile the network with `torch.compile`: a slow first step, then faster ones. Not in checkpoints.
        channels_last: Use channels-last memory format, which speeds up convolutions. Not in checkpoints.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate scheduler, which is stepped after every optimizer step, such as `OneCycle`.
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
        condition: Condition | None = None,
        variance: Variance = "posterior",
        clip: bool | None = None,
        time: NetworkTime = "t",
        sigma_data: float | None = None,
        label_dropout: float = 0.0,
        guidance: float = 1.0,
        num_val_timesteps: int | None = 32,
        max_skipped_steps: int = 10,
        compile: bool = False,
        channels_last: bool = False,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-4, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=EXECUTION_ONLY)
        network = network if network is not None else UNet()
        parts = network, schedule or LinearSchedule(), parametrization or EpsParametrization()
        self.denoiser = Denoiser(*parts, variance, clip is not False, time, sigma_data)
        self.condition = condition
        self.decoder = decoder
        self.objective = objective or PredictionMSE()
        self.timesteps = timesteps or UniformTimesteps()
        self.sampler = sampler or AncestralSampler()
        self.guidance = guidance
        check_training(self.denoiser, self.objective, self.timesteps)
        self.sampler.timesteps(self.denoiser.schedule)  # refuses more steps than T
        _ = self.sampling_denoiser  # refuses guidance of an unconditional network
        if channels_last:
            volumes = any(weight.ndim == 5 for weight in network.parameters())
            network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
        if compile:
            network.compile()

        self.image_shape: tuple[int, ...] | None = None  # (C, H, W); None until the module has seen data
        self.data_levels: int | None = None  # None for real values, or until the module has seen data
        self.standardization: Standardization | None = None  # of real values
        self.held_out: HeldOut | None = None  # the images whose conditions generated images get
        self.last_kl: KLMetrics | None = None  # of the last training batch
        self.evaluator = BoundEvaluator(num_val_timesteps)  # `last_report` is that of the last validation or test
        self.gradient_guard = GradientGuard(max_skipped_steps)  # `skipped_steps` counts those of the fit
        self.data_defaults = DataDefaults(clip)
        self._label_dropout = LabelDropout(label_dropout, self.denoiser.no_label)
        self._make_optimizer = OptimizerFactory(optimizer, lr_scheduler)
        self._importance_feedback = ImportanceFeedback(self.timesteps)
        self._callbacks: list[Callback] = [
            GatherFullWeights(network),
            LogBound(),
            self.gradient_guard,
            self._importance_feedback,
            CostReport(),
        ]

    # --- what users override

    def unpack_batch(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """Splits a batch into images ``[B, C, H, W]`` in [-1, 1] and keyword arguments of the network.

        By default a batch is a tensor, or a tuple or list that starts with one. A network with ``num_classes`` gets the
        second entry as ``label``, where -1 means "no label". A network with ``cond_channels`` gets as ``cond`` what
        `condition` computes, or without one the last entry. Other entries are ignored.
        """
        entries = batch if isinstance(batch, tuple | list) else (batch,)
        x_0, cond = entries[0], {}
        if self.num_classes is not None and len(entries) > 1:
            cond["label"] = entries[1].where(entries[1] >= 0, self.num_classes)
        if self.condition is not None:
            cond["cond"] = self.condition(x_0)
        elif self.cond_channels is not None and len(entries) > 1:
            cond["cond"] = entries[-1]
        return x_0, cond

    def sample_cond(self, index: Tensor, held_out: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns keyword arguments of the network for generated images, by their indices, int64 ``[B]``.

        By default image i of a class-conditional network is of class ``i % num_classes``. A network with
        ``cond_channels`` draws under the conditions of held-out images, `held_out`: what `unpack_batch` returns for
        image ``i % N`` of the N images of the validation split, and in ``test`` and ``predict`` of the test split.
        """
        if held_out is not None:
            return held_out
        return {} if self.num_classes is None else {"label": index % self.num_classes}

    # --- what users call

    def sample(
        self, num_images: int, seed: int = 0, first_index: int = 0, sampler: Sampler | None = None, **cond: Any
    ) -> Tensor:
        """Draws images `first_index` and following of `seed`, ``[num_images, C, H, W]``.

        Pixel levels are in about [-1, 1], and real values in the units of the data. Image i of a seed is always the
        same. The weights are those of the module: the average, if it was loaded from a checkpoint written with `EMA`.
        `sampler` replaces the module's own, and `cond` the result of `sample_cond`: a ``label`` is an integer for all
        images, or an integer for each; a ``cond`` is ``[num_images, C', ...]``, or ``[1, C', ...]`` for all.

        Raises:
            ValueError: If the module has not seen data and so has no image shape, a label is out of range, or a
                condition is missing.
        """
        if self.image_shape is None:
            raise ValueError(
                "image_shape is unknown until the module has seen data: load a checkpoint, or set image_shape."
            )
        cond = self.sample_cond(torch.arange(first_index, first_index + num_images)) | cond
        cond, shape = complete_cond(self, cond, num_images), (num_images, *self.image_shape)
        images = (sampler or self.sampler)(self.sampling_denoiser, shape, seed, first_index, **cond)
        return images if self.standardization is None else self.standardization.undo(images)

    @property
    def objective(self) -> Objective:
        """The training loss; one that needs a decoder and has none gets that of the module."""
        return self._objective if self.decoder is None else self._objective.with_decoder(self.decoder)

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self._objective = objective

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the network, or None for one without labels."""
        return self.denoiser.num_classes

    @property
    def cond_channels(self) -> int | None:
        """The channels of the network's condition, or None for a network without one."""
        return self.denoiser.cond_channels

    @property
    def sampling_denoiser(self) -> Denoiser:
        """The denoiser for sampling, with guidance if there is any."""
        return self.denoiser if self.guidance == 1 else GuidedDenoiser(self.denoiser, self.guidance)

    @property
    def levels(self) -> int:
        """The number of pixel levels of the data, or 256 for real-valued data."""
        return (self.decoder.levels if self.decoder is not None else self.data_levels) or 256

    # --- Lightning: setup and training

    @override
    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        data = DataInfo.of(datamodule)
        self.image_shape = data.image_shape or self.image_shape
        if self.cond_channels is not None and isinstance(datamodule, HasHeldOut):
            self.held_out = HeldOut(self, datamodule, "val" if stage in ("fit", "validate") else "test")
        if stage == "predict":
            return
        self.data_defaults.adapt(self, data)
        check_data(data, self)
        if stage == "fit":  # a checkpoint is loaded later
            self.timesteps.reset()
            self.evaluator.reset()

    @override
    def configure_model(self) -> None:
        if self.device_mesh is not None:  # set by ModelParallelStrategy
            shard(self.denoiser.network, self.device_mesh["data_parallel"])

    @override
    def configure_callbacks(self) -> list[Callback]:
        attached = getattr(self.trainer, "callbacks", [])  # from an earlier fit or test of this Trainer
        return [callback for callback in self._callbacks if callback not in attached]

    @override
    def configure_optimizers(self) -> Any:
        warn_of_lost_optimization(self)
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return self._make_optimizer(trained, lambda: self.trainer.estimated_stepping_batches)

    @override
    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.gradient_guard.clip(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the loss of a batch after one network call, and logs both forms of the KL.

        All randomness of the step (`unpack_batch`, t, eps, dropout) is a function of (seed, epoch, batch index, rank).
        """
        reseed(self.device, "train", training_seed(), self.current_epoch, batch_idx, self.global_rank)
        x_0, cond = self.unpack_batch(batch)
        objective = self.objective
        if batch_idx == 0:
            self.image_shape = tuple(x_0.shape[1:])
            if objective.decoder is not None:
                objective.decoder.check(x_0)
        cond = self._label_dropout(cond)
        loss, losses, weight, pred = training_loss(self.denoiser, x_0, objective, self.timesteps, **cond)
        self._importance_feedback.observe(self, batch_idx, pred.t, losses)
        self.gradient_guard.observe(pred.t, losses)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(x_0))
        self.last_kl = kl_metrics(self.denoiser, pred, weight)
        if self.last_kl is not None:
            self.log_dict(self.last_kl.values, batch_size=len(x_0))
        return loss.float()

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluator.update(*self.unpack_batch(batch))

    test_step = validation_step

    @override
    def predict_dataloader(self) -> DataLoader[SampleChunk]:
        """Returns 64 images of seed 0 to draw."""
        return chunk_loader(SampleChunk.split(self, 64, seed=0))

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Draws the images of a `SampleChunk`; for batch i of data, images of seed i under its conditions."""
        if isinstance(batch, SampleChunk):
            cond = held_out_cond(self, batch.first_index, batch.num_images)
            return self.sample(batch.num_images, batch.seed, batch.first_index, **cond)
        x_0, cond = self.unpack_batch(batch)
        return self.sample(len(x_0), seed=batch_idx * self.trainer.world_size + self.global_rank, **cond)
