"""What loggers keep beside numbers: pictures, tables, configurations. The one room that tells W&B from TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def step_of(trainer: Trainer) -> int:
    """The number of optimizer steps behind the weights, which outside of a fit the module knows."""
    fitting = trainer.state.fn == "fit"
    return trainer.global_step if fitting else int(getattr(trainer.lightning_module, "trained_steps", 0))


def _x_axis(trainer: Trainer) -> int:
    """Where Lightning puts the numbers of the same moment: it counts steps from 0."""
    return max(step_of(trainer) - 1, 0)


def log_picture(trainer: Trainer, key: str, picture: Image.Image, path: Path, caption: str) -> None:
    """Writes a picture to `path`, with the caption in the file, and gives it to the loggers that take pictures."""
    info = PngInfo()
    info.add_text("Description", caption)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, pnginfo=info)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(picture), _x_axis(trainer), dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], _x_axis(trainer), caption=[caption])


def log_table(trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Gives a table to W&B; what other loggers have no place for is in the run's directory."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key, list(columns), [list(row) for row in rows], step=_x_axis(trainer))


def summarize(trainer: Trainer, key: str, best: str) -> None:
    """Has the run's summary show the ``"min"`` or ``"max"`` of a metric instead of its last value."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.define_metric(key, step_metric="trainer/global_step", step_sync=True, summary=best)


def log_config(trainer: Trainer, config: dict[str, Any]) -> None:
    """Adds to the run's configuration."""
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
