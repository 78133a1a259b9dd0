"""What a checkpoint holds beside the weights, and whether one can be used."""

from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.parsing import collect_init_args

from lit_ddpm._internal.config import as_config


def constructor_arguments(frame: FrameType) -> tuple[dict[str, Any], list[str]]:
    """What the outermost constructor of the module being built in `frame` was called with.

    Returns:
        Its arguments as plain data, objects as ``class_path`` and ``init_args``, in the form that
        ``load_from_checkpoint`` builds again with ``weights_only=True``; and the names of those that cannot be.
    """
    arguments: dict[str, Any] = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
    unsaved = []
    for name, value in collect_init_args(frame, [], classes=(LightningModule,))[-1].items():
        try:
            arguments[name] = as_config(value)
        except TypeError:
            unsaved.append(name)
    return arguments, unsaved


def check_weights_are_finite(module: LightningModule) -> None:
    """Raises a FloatingPointError that names the first weight which is not finite."""
    broken = [name for name, weight in module.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise FloatingPointError(
            f"{len(broken)} weights are not finite after step {module.global_step - 1}, the first is {broken[0]}: "
            "no checkpoint was written, and those written before are kept."
        )


def check_weights_fit(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Raises a ValueError that names the first weight whose shape differs between module and checkpoint."""
    ours = {name: list(value.shape) for name, value in module.state_dict().items()}
    theirs = {name: list(value.shape) for name, value in checkpoint["state_dict"].items()}
    different = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    if different:
        name = different[0]
        unsaved = [a for a in checkpoint.get("unsaved_arguments", []) if a not in ("optimizer", "lr_scheduler")]
        hint = f" (saved without its {', '.join(unsaved)}: pass them to load_from_checkpoint)" if unsaved else ""
        raise ValueError(
            f"the checkpoint does not fit the network{hint}: {len(different)} weights differ, the first is {name}, "
            f"{theirs.get(name, 'absent')} in the checkpoint and {ours.get(name, 'absent')} in the network."
        )


def usable_file(path: Path) -> Path:
    """`path` if it is whole; if it is damaged, the checkpoint beside it that came furthest, and a warning says so.

    Raises:
        ValueError: If there is no such file, or it is damaged and nothing is beside it.
    """
    try:
        check_file(path)
    except ValueError as error:
        steps = {}
        for other in path.parent.glob("*.ckpt") if path.is_file() else ():
            with suppress(ValueError):
                steps[other] = check_file(other)
        if not steps:
            raise
        path = max(steps, key=lambda other: steps[other])
        rank_zero_warn(f"{str(error).removesuffix('.')}: going on from {path} instead, of step {steps[path]}.")
    return path


def check_file(path: Path) -> int:
    """The step of a checkpoint of Lightning, which must be whole and load without running code.

    Raises:
        ValueError: If it is not.
    """
    if not path.is_file():
        raise ValueError(f"ckpt_path = {path}: there is no such file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = type(error).__name__
        raise ValueError(
            f"ckpt_path = {path} is truncated, or not a checkpoint that loads safely ({reason})."
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"ckpt_path = {path} holds no state_dict: it is no checkpoint of Lightning.")
    return int(checkpoint.get("global_step", 0))
