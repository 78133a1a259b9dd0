"""The variants of a comparison: one configuration with a different overlay for each, and trained models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml

from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.cli.arguments import temporary_config
from lit_ddpm.cli.configs import find_config, shipped_configs
from lit_ddpm.diffusion.objective import weight_on_x0_mse
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory


def _x0_mse(weighting: str) -> dict[str, Any]:
    return {"class_path": "lit_ddpm.X0MSE", "init_args": {"weighting": {"class_path": f"lit_ddpm.{weighting}"}}}


# Complete objects, since a missing part would be taken from the objective of the configuration.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "kl": {"class_path": "lit_ddpm.PosteriorKL", "init_args": {"decoder": None}},
    "x0_mse": _x0_mse("UniformWeighting"),
    "simple": _x0_mse("SNRWeighting"),
    "min_snr": _x0_mse("MinSNRWeighting"),
    "p2": _x0_mse("P2Weighting"),
    "edm": _x0_mse("EDMWeighting"),
    "sigmoid": _x0_mse("SigmoidWeighting"),
    "flow_matching": _x0_mse("FlowMatchingWeighting"),
}


CONFIG_KEYS = ("seed_everything", "model", "data", "trainer")
"""The part of a run's configuration that does not belong to a command."""


class Variant:
    """One configuration of a comparison.

    Args:
        name: That of the built-in objective, of the overlay's file or of the run of a trained model.
        config: The complete configuration, for ``fit``.
        checkpoint: That of a trained model, which is only measured.
        cli: The objects of the configuration; built on first use if None.
    """

    def __init__(
        self, name: str, config: dict[str, Any], checkpoint: Path | None = None, cli: DDPMCLI | None = None
    ) -> None:
        self.name = name
        self.config = config
        self.checkpoint = checkpoint
        self._built = cli

    @property
    def _cli(self) -> DDPMCLI:
        if self._built is None:
            with temporary_config(self.config) as file:
                self._built = DDPMCLI.without_command([f"--config={file}"])
        return self._built

    @property
    def module(self) -> DDPM:
        """The untrained model."""
        module = self._cli.model
        assert isinstance(module, DDPM)
        return module

    @property
    def trainer(self) -> lightning.Trainer:
        """The Trainer, for the budget and the precision."""
        return self._cli.trainer

    @property
    def data(self) -> Any:
        """The data module."""
        return self._cli.datamodule

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the objective on the x0-MSE, ``[T - 1]`` for t = 2..T, see `weight_on_x0_mse`."""
        return weight_on_x0_mse(self.module.objective, self.module.denoiser)

    @property
    def output_dtype(self) -> torch.dtype:
        """The dtype of a layer's output under the Trainer's precision."""
        plugin, device = self.trainer.precision_plugin, self.trainer.strategy.root_device
        layer = plugin.convert_module(torch.nn.Linear(1, 1)).to(device)
        with plugin.forward_context():
            output: torch.Tensor = layer(plugin.convert_input(torch.zeros(1, 1)).to(device))
        return output.dtype


def resolve_variants(
    configs: Sequence[str | Path], objectives: Sequence[str | Path], overrides: Sequence[str]
) -> list[Variant]:
    """Returns the variants to train after checking them; see `lit_ddpm.compare.compare` for the arguments."""
    if bool(configs) != bool(objectives):
        raise ValueError("variants to train need both --config and --objectives.")
    names = [str(one) if str(one) in OBJECTIVES else Path(one).stem for one in objectives]
    for one in objectives:
        if str(one) not in OBJECTIVES and str(one) not in shipped_configs() and not Path(one).is_file():
            built_in, overlays = ", ".join(OBJECTIVES), ", ".join(shipped_configs("variants"))
            raise ValueError(
                f"objective = {one} is none of {built_in}, none of the overlays {overlays}, and not a file."
            )
    return [_resolve(configs, name, one, overrides) for name, one in zip(names, objectives, strict=True)]


def _resolve(configs: Sequence[str | Path], name: str, objective: str | Path, overrides: Sequence[str]) -> Variant:
    args = [f"--config={config}" for config in configs]
    built_in = OBJECTIVES.get(str(objective))
    if built_in is not None:
        overlay = f"--model.objective={json.dumps(built_in)}"
    else:
        overlay = f"--config={find_config(objective, setting='objective')}"
    return _variant(name, [*args, overlay, *overrides])


def resolve_models(models: Sequence[str | Path], overrides: Sequence[str]) -> list[Variant]:
    """Returns the variants of trained models, by their run directories or checkpoints; they have the name of the run."""
    variants = []
    for model in map(Path, models):
        checkpoint = RunDirectory(model).best_or_last_checkpoint() if model.is_dir() else model
        run = RunDirectory.of_checkpoint(checkpoint) if checkpoint is not None and checkpoint.is_file() else None
        if run is None:
            raise ValueError(f"model = {model} is neither a run directory with a checkpoint nor a checkpoint in one.")
        config = yaml.safe_load(run.config.read_text())
        with temporary_config({key: config[key] for key in CONFIG_KEYS if key in config}) as file:
            variants.append(_variant(run.path.name, [f"--config={file}", *overrides], checkpoint))
    return variants


def check_variants(variants: Sequence[Variant]) -> None:
    """Raises a ValueError if two variants have the same name, a trained model has other images, or `variants` is empty."""
    if not variants:
        raise ValueError(
            "there is nothing to compare: name variants with --config and --objectives, or runs with --models."
        )
    names = [variant.name for variant in variants]
    for variant in variants:
        if names.count(variant.name) > 1:
            raise ValueError(
                f"two variants have the name {variant.name!r}: rename the file of an overlay or the directory of a run, since "
                "its name is that of the variant."
            )
        if variant.checkpoint is not None and _dataset(variant) != _dataset(variants[0]):
            raise ValueError(
                f"the data of {variant.name} and {variants[0].name} differ: trained models are compared on the same images "
                "only. Set --data for all."
            )


def _dataset(variant: Variant) -> Any:
    """Returns the configuration of the data, without the settings of its loaders."""
    data = json.loads(json.dumps(variant.config["data"]))
    for setting in ("batch_size", "eval_batch_size", "flip", "num_workers"):
        data.get("init_args", {}).pop(setting, None)
    return data


def _variant(name: str, args: list[str], checkpoint: Path | None = None) -> Variant:
    cli = DDPMCLI.without_command(args)
    if not isinstance(cli.model, DDPM):
        raise ValueError(f"model = {type(cli.model).__name__} must be a DDPM to be compared.")
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    return Variant(name, config, checkpoint, cli)
