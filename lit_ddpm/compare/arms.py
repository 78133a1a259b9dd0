"""The arms of a comparison: one configuration with a different overlay for each."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml

from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.cli.configs import find_config, shipped_configs
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
    """One configuration of a comparison."""

    name: str  # of the built-in objective or of the overlay's file
    config: dict[str, Any]  # complete, for ``fit``
    module: DDPM  # untrained
    trainer: lightning.Trainer  # for the budget and the precision
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

    See `lit_ddpm.compare.compare` for the arguments.
    """
    if not objectives:
        raise ValueError("objectives is empty: name at least one arm.")
    names = [str(one) if str(one) in OBJECTIVES else Path(one).stem for one in objectives]
    for name, one in zip(names, objectives, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"two arms have the name {name!r}: rename the file of an overlay, since its name is that of the arm."
            )
        if str(one) not in OBJECTIVES and str(one) not in shipped_configs() and not Path(one).is_file():
            built_in, overlays = ", ".join(OBJECTIVES), ", ".join(shipped_configs("arms"))
            raise ValueError(
                f"objective = {one} is none of {built_in}, none of the overlays {overlays}, and not a file."
            )
    return [_resolve(configs, name, one, overrides) for name, one in zip(names, objectives, strict=True)]


def _resolve(configs: Sequence[str | Path], name: str, objective: str | Path, overrides: Sequence[str]) -> Arm:
    args = [f"--config={config}" for config in configs]
    built_in = OBJECTIVES.get(str(objective))
    if built_in is not None:
        overlay = f"--model.objective={json.dumps(built_in)}"
    else:
        overlay = f"--config={find_config(objective, setting='objective')}"
    logging.disable(logging.INFO)  # every run prints the messages of Lightning anyway
    try:
        cli = DDPMCLI([*args, overlay, *overrides], run=False)
    finally:
        logging.disable(logging.NOTSET)
    if not isinstance(cli.model, DDPM):
        raise ValueError(f"model = {type(cli.model).__name__} must be a DDPM to be compared.")
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    return Arm(name, config, cli.model, cli.trainer, cli.datamodule)
