"""What each of our own speed-ups brings, one on top of the other: ``python -m benchmarks ladder``.

Ho et al.'s CIFAR-10 network, batches of 16, each rung in a process of its own, in turns within each round. Beside the
speed stands how far the losses of the same steps are from those of the lowest rung: no rung may change the result.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.programmes import Contestant, Ours, Setting, write_images
from benchmarks.report import machine, ratios, save, spread, table
from benchmarks.throughput import in_turns, random_images

SLOW = ("memory", "fused", "foreach", "sdpa")


def rungs(compiled: bool) -> dict[str, dict[str, Any]]:
    """The settings of each rung, under the name of what it adds."""
    names = ("images in memory", "fused optimizer", "averages all at once", "scaled_dot_product_attention")
    plain = {"channels_last": False}
    found: dict[str, dict[str, Any]] = {"float32": {"without": SLOW, **plain}}
    found |= {f"+ {name}": {"without": SLOW[number + 1 :], **plain} for number, name in enumerate(names)}
    found["+ channels_last"] = {"channels_last": True}
    found["bf16-mixed without channels_last"] = {"precision": "bf16-mixed", **plain}
    found["bf16-mixed with channels_last"] = {"precision": "bf16-mixed", "channels_last": True}
    if compiled:
        gpu = torch.cuda.is_available()
        found["the faster of the two, compiled"] = {"precision": "bf16-mixed", "channels_last": gpu, "compile": True}
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps in a round")
    parser.add_argument("--compile", action="store_true", help="measure a compiled network, too")
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = write_images(Path(place) / "images", random_images())
        all_of_them = {
            name: Contestant(Ours.name, Setting(folder, width=args.width, **settings))
            for name, settings in rungs(args.compile).items()
        }
        seconds = in_turns(all_of_them, args.rounds, "training", args.steps)
        losses = {name: contestant.ask("losses") for name, contestant in all_of_them.items()}
        for contestant in all_of_them.values():
            contestant.end()
    lowest = next(iter(seconds))
    rows = []
    for name, values in seconds.items():
        apart = max(abs(a - b) / b for a, b in zip(losses[name], losses[lowest], strict=True))
        speed = spread([16 / value for value in values])
        rows.append([name, speed, ratios(seconds[lowest], values), f"{apart:.1e}"])
    steps = len(losses[lowest])
    header = ["", "images/s", "times the lowest rung", f"largest relative difference of {steps} losses"]
    print(f"{machine()}; width {args.width}\n\n{table(header, rows)}")
    save(args.json, {"seconds": seconds, "losses": losses})


if __name__ == "__main__":
    main()
