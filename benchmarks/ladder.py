"""Speed-up from each optimization of lit_ddpm's training, added one after another.

Trains Ho et al.'s CIFAR-10 network in batches of 16. Each rung runs in a separate process, and the rungs take turns
within each round. The last column compares the losses of the same steps with those of the first rung, since no
optimization may change the result.
"""

from argparse import Namespace
from typing import Any

import torch

from benchmarks.common.images import image_folder, random_images
from benchmarks.common.report import ratios, spread, table
from benchmarks.libraries.base import Setting
from benchmarks.libraries.worker import Worker, ask_in_turns

OPTIMIZATIONS = {
    "memory": "images in memory",
    "fused": "fused optimizer",
    "foreach": "foreach weight averaging",
    "sdpa": "scaled_dot_product_attention",
}
"""Names for `Setting.disabled`, and what the table calls them."""

OPTIONS = {
    "--width": {"type": int, "default": 32},
    "--rounds": {"type": int, "default": 5},
    "--steps": {"type": int, "default": 8, "help": "training steps in a round"},
    "--compile": {"action": "store_true", "help": "also measure a compiled network"},
}


def rungs(compiled: bool) -> dict[str, dict[str, Any]]:
    """Returns the settings of each rung, by the name of what it adds."""
    disabled = list(OPTIMIZATIONS)
    found: dict[str, dict[str, Any]] = {"float32": {"disabled": disabled, "channels_last": False}}
    for number, name in enumerate(OPTIMIZATIONS.values(), start=1):
        found[f"+ {name}"] = {"disabled": disabled[number:], "channels_last": False}
    found["+ channels_last"] = {"channels_last": True}
    found["bf16-mixed without channels_last"] = {"precision": "bf16-mixed", "channels_last": False}
    found["bf16-mixed with channels_last"] = {"precision": "bf16-mixed", "channels_last": True}
    if compiled:
        gpu = torch.cuda.is_available()
        found["the faster of the two, compiled"] = {"precision": "bf16-mixed", "channels_last": gpu, "compile": True}
    return found


def main(args: Namespace) -> dict[str, Any]:
    """Measures images per second and compares the losses."""
    with image_folder(random_images()) as folder:
        workers = {
            name: Worker("lit_ddpm", Setting(folder, width=args.width, **settings))
            for name, settings in rungs(args.compile).items()
        }
        seconds = ask_in_turns(workers, args.rounds, "training", args.steps)
        losses = {name: worker.ask("training_losses") for name, worker in workers.items()}
        for worker in workers.values():
            worker.close()
    first = next(iter(seconds))
    rows = []
    for name, values in seconds.items():
        difference = max(abs(a - b) / b for a, b in zip(losses[name], losses[first], strict=True))
        speed = spread([16 / value for value in values])
        rows.append([name, speed, ratios(seconds[first], values), f"{difference:.1e}"])
    header = [
        "configuration",
        "images/s",
        "speed-up over the first row",
        f"largest relative difference of {len(losses[first])} losses",
    ]
    print(f"Width {args.width}:\n\n{table(header, rows)}")
    return {"seconds": seconds, "losses": losses}
