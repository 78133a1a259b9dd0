"""The checkpoints that ``fit`` writes unless the configuration has its own."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lit_ddpm.data.spec import DataSpec
from lit_ddpm.training.module import DDPM


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``, with the lowest bound on the validation split, in the unit of the data."""

    def __init__(self, every_n_epochs: int) -> None:
        settings: dict[str, Any] = {"every_n_epochs": every_n_epochs, "save_on_train_epoch_end": True}
        super().__init__(filename="best", monitor="val/bpd", **settings)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(pl_module, DDPM):
            data = DataSpec.of(getattr(trainer, "datamodule", None))  # the module observes them later
            levels = pl_module.decoder_of(data.completed(pl_module.data)).levels
            self.monitor = "val/nats_per_dim" if levels is None else "val/bpd"
        super().setup(trainer, pl_module, stage)


def default_checkpoints(callbacks: list[Callback], config: Any) -> list[Callback]:
    """Returns callbacks for ``last.ckpt`` and ``best.ckpt``, except those that the configuration replaces."""
    configured = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    defaults: list[Callback] = []
    if not any(callback.filename == "last" or callback.save_last for callback in configured):
        settings: dict[str, Any] = {"save_on_exception": True, "save_on_train_epoch_end": True}
        defaults.append(ModelCheckpoint(filename="last", enable_version_counter=False, **settings))
    validates = config.get("limit_val_batches") != 0
    if validates and not any(callback.monitor is not None for callback in configured):
        defaults.append(BestCheckpoint(config.get("check_val_every_n_epoch") or 1))
    return defaults
