"""DDPM, the LightningModule: Lightning's hooks over the slots of a diffusion model."""

from dataclasses import replace
from typing import Any

import torch
from lightning import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_ddpm._internal.random import reseed, training_seed
from lit_ddpm.data.protocols import HasHeldOut
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.diffusion.objective import loss_of_batch
from lit_ddpm.training.averaging import averaging_callback, holds_average
from lit_ddpm.training.checkpoint import (
    STATE_KEY,
    check_weights_are_finite,
    module_state,
    restore_state,
    warn_of_lost_optimization,
)
from lit_ddpm.training.distributed import shard
from lit_ddpm.training.kl_metrics import KLMetrics, kl_metrics
from lit_ddpm.training.optimization import SkipNonFinite
from lit_ddpm.training.sampling import SampleChunk, chunk_loader
from lit_ddpm.training.setup import check_data, internal_callbacks
from lit_ddpm.training.slots import Slots


class DDPM(Slots):
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
        decoder: The likelihood at t = 1; if None, that of the data, see `DataSpec.decoder`.
        sampler: The sampler.
        condition: Computes the condition of a network with ``cond_channels`` from the images, see `unpack_batch`.
        variance: The variance of ``p_theta``, see `Denoiser`; ``"learned"`` needs twice the output channels.
        clip: Clip the estimate of x_0 to [-1, 1] in sampler and bound; if None, for pixel levels and not for real
            values.
        guidance: The scale of classifier-free guidance in sampling, and the label dropout that it needs in training.
        evaluation: How the bound is measured in validation and testing; `Evaluation.last_report` is the last result.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate scheduler, which is stepped after every optimizer step, such as `OneCycle`.
    """

    _averaged = False  # whether the weights after a fit, or from a checkpoint, are the average

    trained_steps = 0
    """The optimizer steps of the weights after a fit or from a checkpoint."""

    last_kl: KLMetrics | None = None
    """Both forms of the KL of the last training batch."""

    last_losses = torch.empty(0), torch.empty(0)
    """t of the last training batch, ``[B]`` on the CPU, and the loss of each image, ``[B]``; empty before the first."""

    # --- setup

    @override
    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        data = DataSpec.of(datamodule)
        if self.denoiser.network_spec.cond_channels is not None and isinstance(datamodule, HasHeldOut):
            self.condition_on(datamodule, "val" if stage in ("fit", "validate") else "test")
        if stage == "predict" and datamodule is None:
            return
        self.observe(data)
        check_data(data, self)
        if stage == "fit":  # a checkpoint is loaded later
            self.timesteps.reset()
            self.evaluation.reset()

    @override
    def teardown(self, stage: str) -> None:
        self.held_out = None  # `sample` does not depend on the last command

    @override
    def configure_model(self) -> None:
        if self.device_mesh is not None:  # set by ModelParallelStrategy
            shard(self.denoiser.network, self.device_mesh["data_parallel"])

    @override
    def configure_callbacks(self) -> list[Callback]:
        attached = getattr(self.trainer, "callbacks", [])  # those given, or from an earlier fit or test of this Trainer
        return internal_callbacks(attached)

    @override
    def configure_optimizers(self) -> Any:
        warn_of_lost_optimization(self)
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return self._make_optimizer(trained, lambda: self.trainer.estimated_stepping_batches)

    @override
    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        guards = [c for c in getattr(self.trainer, "callbacks", []) if isinstance(c, SkipNonFinite)]
        if guards:  # it knows the norm
            guards[0].clip(self, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @override
    def on_fit_start(self) -> None:
        self._averaged = False  # training resumes from the raw weights, even if the checkpoint's state_dict is averaged

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the loss of a batch after one network call, and logs both forms of the KL.

        All randomness of the step (`unpack_batch`, t, eps, dropout) is a function of (seed, epoch, batch index, rank).
        """
        reseed(self.device, "train", training_seed(), self.current_epoch, batch_idx, self.global_rank)
        x_0, cond = self.unpack_batch(batch)
        objective = self.training_objective
        if batch_idx == 0:
            self.data = replace(self.data, image_shape=tuple(x_0.shape[1:]))
            if objective.decoder is not None:
                objective.decoder.check(x_0)
        cond = self.guidance.drop(cond, self.denoiser.network_spec.no_label)
        loss, losses, weight, pred = loss_of_batch(self.denoiser, x_0, objective, self.timesteps, **cond)
        self.last_losses = pred.t, losses.detach()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(x_0))
        self.last_kl = kl_metrics(self.denoiser, pred, weight)
        if self.last_kl is not None:
            self.log_dict(self.last_kl.values, batch_size=len(x_0))
        return loss.float()

    @override
    def on_train_end(self) -> None:
        self._averaged = averaging_callback(self.trainer) is not None

    @override
    def on_fit_end(self) -> None:
        self._averaged = self.averaged  # the Trainer may be another one later
        self.trained_steps = self.trainer.global_step

    @property
    def averaged(self) -> bool:
        """Whether the module holds averaged weights, see `EMA`."""
        return self._averaged or (self._trainer is not None and holds_average(self._trainer))

    # --- Lightning: evaluation, prediction and checkpoints

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluation.update(*self.unpack_batch(batch))

    test_step = validation_step

    @override
    def predict_dataloader(self) -> DataLoader[SampleChunk]:
        """Returns 64 images of seed 0 to draw."""
        return chunk_loader(SampleChunk.split(self.sampler, 64, seed=0))

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Draws the images of a `SampleChunk`; for batch i of data, images of seed i under its conditions."""
        if isinstance(batch, SampleChunk):
            return self.sample(batch.num_images, batch.seed, batch.first_index)
        x_0, cond = self.unpack_batch(batch)
        return self.sample(len(x_0), seed=batch_idx * self.trainer.world_size + self.global_rank, **cond)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights_are_finite(self)
        checkpoint[STATE_KEY] = module_state(self)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (state := checkpoint.get(STATE_KEY)) is not None:
            datamodule = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
            restore_state(self, state, None if datamodule is None else DataSpec.of(datamodule))
        self._averaged = "current_model_state" in checkpoint  # Lightning's WeightAveraging puts the raw weights there
        self.trained_steps = checkpoint.get("global_step", 0)
