"""Checkpoints: their contents next to the weights, and which files can be loaded."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_ddpm._internal.checks import InputError, NonFiniteError
from lit_ddpm.data.spec import DataSpec

if TYPE_CHECKING:
    from lit_ddpm.training.hparams import PlainHyperparameters
    from lit_ddpm.training.module import DDPM


STATE_KEY = "lit_ddpm"
"""The entry of a checkpoint with the state of the module's parts."""

OPTIMIZATION = ("optimizer", "lr_scheduler")
"""The arguments of `DDPM` that only training needs."""


def module_state(module: "DDPM") -> dict[str, Any]:
    """Returns the state of a module's parts as plain data, for `STATE_KEY` of a checkpoint."""
    return {
        "data": module.data.state(),
        "timesteps": {type(module.timesteps).__name__: module.timesteps.state_dict()},
        "evaluation": module.evaluation.state_dict(),
        "denoiser": module.denoiser.state(),
        "unsaved_arguments": list(module.unsaved_arguments),
    }


def restore_state(module: "DDPM", state: dict[str, Any], attached: DataSpec | None) -> None:
    """Restores what `module_state` returned; the data are those `attached` by a data module, if there is one.

    Raises:
        ValueError: If the checkpoint was written by an earlier version.
    """
    if "data" not in state:
        raise InputError("the checkpoint is of an earlier version of lit_ddpm, which this one does not load.")
    saved = DataSpec.from_state(state["data"])
    if attached is not None and (different := attached.differences(saved)):
        rank_zero_warn(f"The data differ from those of the checkpoint in {different}: the data module's are used.")
    module.observe(saved if attached is None else attached.completed(saved))
    if timesteps := state["timesteps"].get(type(module.timesteps).__name__):
        module.timesteps.load_state_dict(timesteps)
    module.evaluation.load_state_dict(state["evaluation"], module.denoiser.schedule.num_steps)
    module.denoiser.load_state(state["denoiser"])
    module.record_missing_arguments(state["unsaved_arguments"])


def check_weights_are_finite(module: LightningModule) -> None:
    """Raises a NonFiniteError that names the first weight that is not finite."""
    broken = [name for name, weight in module.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise NonFiniteError(
            f"{len(broken)} weights are not finite after step {module.global_step - 1}, the first is {broken[0]}: "
            "no checkpoint was written, and earlier ones are kept."
        )


def check_weights_fit(module: "PlainHyperparameters", state_dict: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the first weight whose shape differs between module and checkpoint."""
    in_module, in_file = _shapes(module.state_dict()), _shapes(state_dict)
    different = [name for name in {**in_file, **in_module} if in_module.get(name) != in_file.get(name)]
    if different:
        name = different[0]
        unsaved = [argument for argument in module.lost_arguments if argument not in OPTIMIZATION]
        hint = f" (saved without its {', '.join(unsaved)}: pass them to load_from_checkpoint)" if unsaved else ""
        raise InputError(
            f"the checkpoint does not fit the network{hint}: {len(different)} weights differ, the first is {name}, "
            f"{in_file.get(name, 'absent')} in the checkpoint and {in_module.get(name, 'absent')} in the network."
        )


def matching_weights(module: "PlainHyperparameters", state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the weights whose names and shapes are those of a module, and logs which are taken, left and new.

    Raises:
        ValueError: If there are none.
    """
    in_module, in_file = _shapes(module.state_dict()), _shapes(state_dict)
    taken = [name for name in in_file if in_module.get(name) == in_file[name]]
    if not taken:
        raise InputError(f"none of the {len(in_file)} weights of the checkpoint has a name and shape of the network.")
    left = [name for name in in_file if name not in taken]
    new = [name for name in in_module if name not in taken]
    if not left and not new:
        rank_zero_info(f"All {len(taken)} weights are taken from the checkpoint.")
        return dict(state_dict)
    for what, names, shapes in (
        ("are taken from the checkpoint", taken, in_file),
        ("of the checkpoint are left, since the network has none of this name and shape", left, in_file),
        ("are new and keep their initial values", new, in_module),
    ):
        listed = ", ".join(f"{name} {shapes[name]}" for name in names)
        rank_zero_info(f"{len(names)} weights {what}{': ' if names else ''}{listed}.")
    return {name: state_dict[name] for name in taken}


def init_weights(module: "PlainHyperparameters", path: Path) -> None:
    """Loads the weights of a checkpoint that fit a module; the average, if it was written with averaging.

    Raises:
        ValueError: If the file is not a checkpoint, or none of its weights fits.
    """
    checkpoint = load_checkpoint(path, setting="init_from")
    kind = "averaged weights" if "current_model_state" in checkpoint else "weights"
    rank_zero_info(f"The initial weights are the {kind} of step {checkpoint.get('global_step', 0):,} in {path}.")
    module.load_state_dict(checkpoint["state_dict"], strict=False)


def warn_of_lost_optimization(module: "PlainHyperparameters") -> None:
    """Warns that a loaded module is trained without the optimizer or scheduler that it was built with."""
    if lost := " and ".join(name for name in OPTIMIZATION if name in module.lost_arguments):
        rank_zero_warn(
            f"The checkpoint was written without its {lost}, since a function cannot be saved: training uses the "
            f"default. Pass {lost} to load_from_checkpoint."
        )


def _shapes(state_dict: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state_dict.items()}


def usable_checkpoint(path: Path) -> Path:
    """Returns `path` if it is intact; if it is damaged, warns and returns the latest intact checkpoint in its folder.

    Raises:
        ValueError: If there is no such file, or it is damaged and its folder has no other.
    """
    try:
        load_checkpoint(path)
    except InputError as error:
        steps = {}
        for other in path.parent.glob("*.ckpt") if path.is_file() else ():
            with suppress(InputError):
                steps[other] = int(load_checkpoint(other).get("global_step", 0))
        if not steps:
            raise
        path = max(steps, key=lambda other: steps[other])
        rank_zero_warn(f"{str(error).removesuffix('.')}: resuming from {path} of step {steps[path]} instead.")
    return path


def load_checkpoint(path: Path, setting: str = "ckpt_path") -> dict[str, Any]:
    """Returns the content of a Lightning checkpoint; `setting` is the name of the path in messages.

    Raises:
        ValueError: If the file does not exist, is damaged, or does not load with ``weights_only=True``.
    """
    if not path.is_file():
        raise InputError(f"{setting} = {path} does not exist.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = f"is truncated, or not a checkpoint that loads safely ({type(error).__name__})"
        raise InputError(f"{setting} = {path} {reason}.") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{setting} = {path} has no state_dict: it is not a Lightning checkpoint.")
    return checkpoint
