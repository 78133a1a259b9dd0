"""Checkpoints: their contents next to the weights, and which files can be loaded."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

STATE_KEY = "lit_ddpm"
"""The entry of a checkpoint that `save_state` writes."""


def save_state(module: "DDPM", checkpoint: dict[str, Any]) -> None:
    """Adds the state of a module's parts to a checkpoint, unless a weight is not finite."""
    check_weights_are_finite(module)
    checkpoint[STATE_KEY] = {
        "image_shape": None if module.image_shape is None else list(module.image_shape),
        "data_levels": module.data_levels,
        "timesteps": module.timesteps.state_dict(),
        "evaluator": module.evaluator.state_dict(),
        "unsaved_arguments": list(module.unsaved_arguments),
    }


def load_state(module: "DDPM", checkpoint: dict[str, Any]) -> None:
    """Restores the state of a module's parts from a checkpoint whose weights fit the module."""
    if "state_dict" in checkpoint:  # a sharding strategy has loaded it already
        check_weights_fit(module, checkpoint)
    if (state := checkpoint.get(STATE_KEY)) is not None:
        if state["image_shape"] is not None:
            module.image_shape = tuple(state["image_shape"])
        module.data_levels = state["data_levels"]
        if state["timesteps"]:
            module.timesteps.load_state_dict(state["timesteps"])
        module.evaluator.load_state_dict(state["evaluator"], module.denoiser.schedule.num_steps)
    module.averaged = "current_model_state" in checkpoint  # Lightning's WeightAveraging puts the raw weights there
    module.trained_steps = checkpoint.get("global_step", 0)


def check_weights_are_finite(module: LightningModule) -> None:
    """Raises a FloatingPointError that names the first weight that is not finite."""
    broken = [name for name, weight in module.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise FloatingPointError(
            f"{len(broken)} weights are not finite after step {module.global_step - 1}, the first is {broken[0]}: "
            "no checkpoint was written, and earlier ones are kept."
        )


def check_weights_fit(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Raises a ValueError that names the first weight whose shape differs between module and checkpoint."""
    in_module = {name: list(value.shape) for name, value in module.state_dict().items()}
    in_file = {name: list(value.shape) for name, value in checkpoint["state_dict"].items()}
    different = [name for name in {**in_file, **in_module} if in_module.get(name) != in_file.get(name)]
    if different:
        name = different[0]
        unsaved = checkpoint.get(STATE_KEY, {}).get("unsaved_arguments", [])
        unsaved = [argument for argument in unsaved if argument not in ("optimizer", "lr_scheduler")]
        hint = f" (saved without its {', '.join(unsaved)}: pass them to load_from_checkpoint)" if unsaved else ""
        raise ValueError(
            f"the checkpoint does not fit the network{hint}: {len(different)} weights differ, the first is {name}, "
            f"{in_file.get(name, 'absent')} in the checkpoint and {in_module.get(name, 'absent')} in the network."
        )


def usable_checkpoint(path: Path) -> Path:
    """Returns `path` if it is intact; if it is damaged, warns and returns the latest intact checkpoint in its folder.

    Raises:
        ValueError: If there is no such file, or it is damaged and its folder has no other.
    """
    try:
        check_checkpoint(path)
    except ValueError as error:
        steps = {}
        for other in path.parent.glob("*.ckpt") if path.is_file() else ():
            with suppress(ValueError):
                steps[other] = check_checkpoint(other)
        if not steps:
            raise
        path = max(steps, key=lambda other: steps[other])
        rank_zero_warn(f"{str(error).removesuffix('.')}: resuming from {path} of step {steps[path]} instead.")
    return path


def check_checkpoint(path: Path) -> int:
    """Returns the step of a Lightning checkpoint.

    Raises:
        ValueError: If the file does not exist, is damaged, or does not load with ``weights_only=True``.
    """
    if not path.is_file():
        raise ValueError(f"ckpt_path = {path} does not exist.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = f"is truncated, or not a checkpoint that loads safely ({type(error).__name__})"
        raise ValueError(f"ckpt_path = {path} {reason}.") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"ckpt_path = {path} has no state_dict: it is not a Lightning checkpoint.")
    return int(checkpoint.get("global_step", 0))
