"""Images, tables and configurations for the loggers; the only module that distinguishes W&B from TensorBoard."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lit_ddpm._internal.files import atomic_write
from lit_ddpm.training.module import DDPM


def step_of(trainer: Trainer) -> int:
    """Returns the number of optimizer steps of the current weights, also outside of a fit."""
    module = trainer.lightning_module
    if trainer.state.fn != "fit" and isinstance(module, DDPM):
        return module.trained_steps
    return trainer.global_step


def _x_axis(trainer: Trainer) -> int:
    """Returns the x-axis value of Lightning's scalars, which counts steps from 0."""
    return max(step_of(trainer) - 1, 0)


def log_image(trainer: Trainer, key: str, image: Image.Image, path: Path, caption: str) -> None:
    """Writes an image to `path`, with the caption as metadata, and sends it to the loggers for images; on rank 0.

    These are TensorBoard, W&B and any logger with a method ``log_image`` or ``log_images``.
    """
    info = PngInfo()
    info.add_text("Description", caption)
    with atomic_write(path) as partial:
        image.save(partial, format="png", pnginfo=info)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(image), _x_axis(trainer), dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, [image], _x_axis(trainer), caption=[caption])
        elif log_images := getattr(logger, "log_image", None) or getattr(logger, "log_images", None):
            log_images(key, [image], _x_axis(trainer))  # the signature of Lightning's WandbLogger


def log_table(trainer: Trainer, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Sends a table to W&B; other loggers do not accept tables."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key, columns, rows, step=_x_axis(trainer))


def summarize(trainer: Trainer, key: str, best: str) -> None:
    """Sets the summary of a metric in W&B to its ``"min"`` or ``"max"`` instead of its last value."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.define_metric(key, step_metric="trainer/global_step", step_sync=True, summary=best)


def log_config(trainer: Trainer, config: dict[str, Any]) -> None:
    """Adds entries to the configuration of the run in every logger."""
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
