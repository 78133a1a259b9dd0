"""The arms of a comparison: one configuration with a different overlay for each."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml

from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.training.module import DDPM


def _x0_mse(weighting: str) -> dict[str, Any]:
    return {"class_path": "lit_ddpm.X0MSE", "init_args": {"weighting": {"class_path": f"lit_ddpm.{weighting}"}}}


# Complete objects, since a missing part would be taken from the objective of the configuration.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "kl": {"class_path": "lit_ddpm.PosteriorKL", "init_args": {"decoder": None}},
    "x0_mse": _x0_mse("UniformWeighting"),
    "simple": _x0_mse("SNRWeighting"),
    "min_snr": _x0_mse("MinSNRWeighting"),
}


@dataclass(frozen=True)
class Arm:
    """One configuration of a comparison.

    Attributes:
        name: The name of the built-in objective or of the overlay's file.
        config: The complete configuration for ``fit``.
        module: The untrained module.
        trainer: The Trainer, for the budget and the precision.
        data: The data module.
    """

    name: str
    config: dict[str, Any]
    module: DDPM
    trainer: lightning.Trainer
    data: Any

    @property
    def output_dtype(self) -> torch.dtype:
        """The dtype of a layer's output under the Trainer's precision."""
        plugin, device = self.trainer.precision_plugin, self.trainer.strategy.root_device
        layer = plugin.convert_module(torch.nn.Linear(1, 1)).to(device)
        with plugin.forward_context():
            output: torch.Tensor = layer(plugin.convert_input(torch.zeros(1, 1)).to(device))
        return output.dtype


def resolve_arms(
    configs: Sequence[str | Path], objectives: Sequence[str | Path], overrides: Sequence[str]
) -> list[Arm]:
    """Returns the arms of a comparison after checking them.

    Args:
        configs: The configuration files of all arms; later ones override earlier ones.
        objectives: For each arm a name of `OBJECTIVES` or the path of an overlay.
        overrides: Flags for all arms, such as ``--trainer.max_epochs=5``.

    Raises:
        ValueError: If an arm is unknown, its file does not exist, or two arms have the same name.
    """
    names = [str(one) if str(one) in OBJECTIVES else Path(one).stem for one in objectives]
    if not names:
        raise ValueError("objectives is empty: name at least one arm.")
    for name, one in zip(names, objectives, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"two arms have the name {name!r}: rename the file of an overlay, since its name is that of the arm."
            )
        if name != str(one) and not Path(one).is_file():
            raise ValueError(f"the overlay {one} of objectives does not exist.")
        if name == str(one) and name not in OBJECTIVES:
            raise ValueError(
                f"objective {name!r} is neither one of {', '.join(OBJECTIVES)} nor the path of an overlay."
            )
    return [_resolve(configs, name, one, overrides) for name, one in zip(names, objectives, strict=True)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses messages of Lightning for each arm, since every run prints them anyway."""
    names = ("fabric.utilities.seed", "fabric.utilities.rank_zero", "pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(f"lightning.{name}") for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _resolve(configs: Sequence[str | Path], name: str, objective: str | Path, overrides: Sequence[str]) -> Arm:
    args = [f"--config={config}" for config in configs]
    built_in = OBJECTIVES.get(str(objective))
    overlay = f"--config={objective}" if built_in is None else f"--model.objective={json.dumps(built_in)}"
    with _quiet():
        cli = DDPMCLI([*args, overlay, *overrides], run=False)
    if not isinstance(cli.model, DDPM):
        raise ValueError(f"model = {type(cli.model).__name__} must be a DDPM to be compared.")
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    return Arm(name, config, cli.model, cli.trainer, cli.datamodule)
