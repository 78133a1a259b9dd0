"""The variants of a comparison: one configuration with a different overlay for each, and trained models."""

import inspect
import json
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import as_config
from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.cli.arguments import temporary_config
from lit_ddpm.cli.configs import find_config, shipped_configs
from lit_ddpm.diffusion.objective import X0MSE, Objective, weight_on_x0_mse
from lit_ddpm.diffusion.weighting import Weighting
from lit_ddpm.training.module import DDPM
from lit_ddpm.training.run_directory import RunDirectory

OBJECTIVES = {
    "kl": "PosteriorKL",
    "x0_mse": "UniformWeighting",
    "simple": "SNRWeighting",
    "min_snr": "MinSNRWeighting",
    "p2": "P2Weighting",
    "edm": "EDMWeighting",
    "sigmoid": "SigmoidWeighting",
    "flow_matching": "FlowMatchingWeighting",
}
"""The short names of classes; a weighting w stands for ``X0MSE(w)``."""

CONFIG_KEYS = ("seed_everything", "model", "data", "trainer")
"""The part of a run's configuration that does not belong to a command."""


@dataclass(frozen=True)
class Variant:
    """One configuration of a comparison."""

    name: str  # of the objective or its class, of the overlay's file or of the run of a trained model
    config: dict[str, Any]  # complete, for ``fit``
    checkpoint: Path | None = None  # of a trained model, which is only measured
    built: DDPMCLI | None = field(default=None, repr=False, compare=False)  # the objects of the configuration, if known

    @cached_property
    def _cli(self) -> DDPMCLI:
        if self.built is not None:
            return self.built
        with temporary_config(self.config) as file:
            return DDPMCLI.without_command([f"--config={file}"])

    @property
    def module(self) -> DDPM:
        """The untrained model."""
        module = self._cli.model
        assert isinstance(module, DDPM)
        return module

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
        plugin, device = self._cli.trainer.precision_plugin, self._cli.trainer.strategy.root_device
        layer = plugin.convert_module(torch.nn.Linear(1, 1)).to(device)
        with plugin.forward_context():
            output: torch.Tensor = layer(plugin.convert_input(torch.zeros(1, 1)).to(device))
        return output.dtype


def resolve_variants(
    configs: Sequence[str | Path], objectives: Sequence[str | Path], overrides: Sequence[str]
) -> list[Variant]:
    """Returns the variants to train after checking them; see `lit_ddpm.compare.compare` for the arguments."""
    if bool(configs) != bool(objectives):
        raise InputError("variants to train need both --config and --objectives.")
    args = [f"--config={config}" for config in configs]
    named = [_override(str(objective)) for objective in objectives]  # all, before anything is built
    return [_variant(name, [*args, override, *overrides]) for name, override in named]


def _override(objective: str) -> tuple[str, str]:
    """Returns the name of a variant and the flag that overrides the configuration."""
    if objective not in OBJECTIVES and (objective in shipped_configs() or Path(objective).is_file()):
        return Path(objective).stem, f"--config={find_config(objective, setting='objective')}"
    kind = _objective_class(OBJECTIVES.get(objective, objective))
    try:
        made = kind()
        # With all arguments, since a missing one would be taken from the objective of the configuration.
        config = as_config(X0MSE(made) if isinstance(made, Weighting) else made)
    except TypeError as error:
        raise InputError(f"objective = {objective} needs an overlay that sets its arguments: {error}.") from None
    return (objective if objective in OBJECTIVES else kind.__name__), f"--model.objective={json.dumps(config)}"


def _objective_class(name: str) -> type[Objective | Weighting]:
    """Returns a class by its public name or import path."""
    found, reason = None, ""
    is_path = "." in name and not name.endswith((".yaml", ".yml"))
    try:
        found = pkgutil.resolve_name(name if is_path else f"lit_ddpm.{name}")
    except (AttributeError, ImportError, ValueError) as error:
        reason = f" ({error})" if is_path else ""
    if not (isinstance(found, type) and issubclass(found, Objective | Weighting)) or inspect.isabstract(found):
        built_in, overlays = ", ".join(OBJECTIVES), ", ".join(shipped_configs("variants"))
        raise InputError(
            f"objective = {name} is none of {built_in}, none of the overlays {overlays}, not a file, and not a "
            "Weighting or Objective: a class of lit_ddpm such as KLWeighting, or an import path such as "
            f"mine.MyWeighting{reason}."
        )
    return found


def resolve_models(models: Sequence[str | Path], overrides: Sequence[str]) -> list[Variant]:
    """Returns the variants of trained models, by their run directories or checkpoints, with the names of the runs."""
    variants = []
    for model in map(Path, models):
        checkpoint = RunDirectory(model).best_or_last_checkpoint() if model.is_dir() else model
        run = RunDirectory.of_checkpoint(checkpoint) if checkpoint is not None and checkpoint.is_file() else None
        if run is None:
            raise InputError(f"model = {model} is neither a run directory with a checkpoint nor a checkpoint in one.")
        config = yaml.safe_load(run.config.read_text())
        with temporary_config({key: config[key] for key in CONFIG_KEYS if key in config}) as file:
            variants.append(_variant(run.path.resolve().name, [f"--config={file}", *overrides], checkpoint))
    return variants


def check_variants(variants: Sequence[Variant]) -> None:
    """Raises a ValueError if there are no variants, their names are unfit, or a trained model has other images."""
    if not variants:
        raise InputError(
            "there is nothing to compare: name variants with --config and --objectives, or runs with --models."
        )
    names = [variant.name.casefold() for variant in variants]
    for variant in variants:
        if names.count(variant.name.casefold()) > 1:  # some file systems ignore the case
            raise InputError(
                f"two variants have the name {variant.name!r}: rename a class, the file of an overlay or the directory "
                "of a run, since its name is that of the variant."
            )
        if not variant.name.strip("."):
            raise InputError(f"{variant.name!r} is not usable as the name of a variant's folder: rename its file.")
        if variant.checkpoint is not None and _dataset(variant) != _dataset(variants[0]):
            raise InputError(
                f"the data of {variant.name} and {variants[0].name} differ: trained models are compared on the same "
                "images only. Set --data for all."
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
        raise InputError(f"model = {type(cli.model).__name__} must be a DDPM to be compared.")
    return Variant(name, yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)), checkpoint, cli)
