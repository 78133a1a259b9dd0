"""What training and measuring cost against T, image size, width and processes: ``python -m benchmarks costs``.

Fits ``configs/cifar10.yaml`` on random images, at width 32 in batches of 16, by the command, and varies one thing at a
time; the figures are those that `Performance` logs in each run. The fits take turns. Then times the exact bound and the
FID beside the bare calls of their networks, which nobody can do without, and the start of the command beside the
imports of torch and Lightning.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.fits import fit
from benchmarks.memory import CONFIGS, random_inception
from benchmarks.programmes import quiet, write_images
from benchmarks.report import machine, now, ratios, save, spread, table
from benchmarks.throughput import random_images
from lit_ddpm import Denoiser, DiscretizedGaussian, EpsParametrization, LinearSchedule, UNet, variational_bound
from lit_ddpm.data import to_float
from lit_ddpm.metrics.fid import RealStatistics, sample_metrics
from lit_ddpm.metrics.inception import InceptionFeatures

EVERY = 8  # steps from one logged value to the next
BASE = {"num_steps": 1000, "image_size": 32, "width": 32, "processes": 1}
VARIED: dict[str, tuple[int, ...]] = {
    "num_steps": (100, 4000),
    "image_size": (16, 64),
    "width": (16, 64),
    "processes": (2,),
}


def configuration(folder: str, directory: Path, setting: dict[str, int]) -> dict[str, Any]:
    """``configs/cifar10.yaml`` as the setting has it, for a few steps without validation."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / "cifar10.yaml").read_text())
    model = config["model"]["init_args"]
    model["network"]["init_args"]["width"] = setting["width"]
    model["schedule"]["init_args"]["num_steps"] = setting["num_steps"]
    images = {"root": folder, "image_size": setting["image_size"], "batch_size": 16 // setting["processes"]}
    images |= {"val_size": 1, "test_size": 1}
    config["data"] = {"class_path": "lit_ddpm.data.ImageFolderDataModule", "init_args": images}
    config["trainer"] = {
        "default_root_dir": str(directory),
        "max_steps": 4 * EVERY,
        "log_every_n_steps": EVERY,
        "limit_val_batches": 0,
        "gradient_clip_val": 1.0,
        "devices": setting["processes"],
        "strategy": "auto" if setting["processes"] == 1 else "ddp",
        "enable_checkpointing": False,
        "callbacks": [{"class_path": f"lit_ddpm.callbacks.{name}"} for name in ("EMA", "Performance")],
    }
    return config


def training(place: Path, rounds: int) -> tuple[str, Any]:
    """A table of short fits."""
    folder = write_images(place / "images", random_images(size=64))
    settings = {"as it is": BASE}
    settings |= {f"{name} = {value:,}": BASE | {name: value} for name, values in VARIED.items() for value in values}
    if torch.cuda.is_available():
        settings = {name: s for name, s in settings.items() if s["processes"] <= torch.cuda.device_count()}
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in settings}
    for number in range(rounds):
        for name, setting in settings.items():
            directory = Path(tempfile.mkdtemp(dir=place))
            values = fit(configuration(folder, directory, setting), directory / "config.yaml")
            for key, logged in values.items():
                found[name][key].append(statistics.median(logged[1:]))  # the first value is that of the first steps
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
    base = found["as it is"]["perf/images_per_s"]
    rows = [
        [
            name,
            spread(values["perf/images_per_s"]),
            ratios(base, values["perf/images_per_s"]),
            spread([100 * share for share in values["perf/outside_network"]], ".1f"),
            spread(values["perf/peak_memory_gib"], ".2f"),
        ]
        for name, values in found.items()
    ]
    return table(["", "images/s", "times the time", "outside the network, %", "peak memory, GiB"], rows), found


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    start = now()
    work()
    return now() - start


def measuring(place: Path, rounds: int) -> tuple[str, Any]:
    """A table of the exact bound and of the FID, each beside the calls of its network alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, tuple[list[float], list[float]]] = {}
    pictures = random_images(64)
    images = to_float(pictures[:16], 256).to(device)

    def beside(name: str, work: Callable[[], Any], bare: Callable[[], Any]) -> None:
        found[name] = ([seconds(work) for _ in range(rounds)], [seconds(bare) for _ in range(rounds)])

    with torch.no_grad():
        for num_steps in (50, 200):
            network = UNet(3, width=32, multipliers=(1, 2, 2, 2), num_blocks=2, attention_levels=(1,)).to(device).eval()
            denoiser = Denoiser(network, LinearSchedule(num_steps), EpsParametrization())
            t = torch.ones(len(images), dtype=torch.int64, device=device)
            network(images, t)
            beside(
                f"the exact bound of {len(images)} images, T = {num_steps}",
                lambda denoiser=denoiser: variational_bound(denoiser, images, DiscretizedGaussian(256)),
                lambda network=network, t=t, n=num_steps: [network(images, t) for _ in range(n)],
            )
        path = place / "inception.pth"
        random_inception(path)
        extractor = InceptionFeatures(str(path), hashlib.sha256(path.read_bytes()).hexdigest()).to(device)
        features: list[Tensor] = [extractor(pictures[:2].to(device))[0]]
        inception = extractor.load().to(device)
        beside(
            f"the Inception features of {len(pictures)} images",
            lambda: features.append(extractor(pictures.to(device))[0]),
            lambda: inception(pictures.to(device)),
        )
        real = RealStatistics.of_features(features[-1].cpu())
        statistics_alone = [seconds(lambda: sample_metrics(real, features[-1], kid_subset_size=32))]
    rows = [[name, spread(whole), spread(bare), ratios(whole, bare)] for name, (whole, bare) in found.items()]
    text = table(["", "s", "its network alone, s", "ratio"], rows)
    text += f"\n\nFID and KID from the 2,048 features of {len(pictures)} images take {statistics_alone[0]:.1f} s."
    return text, {"measuring": found, "fid_and_kid": statistics_alone}


STARTS = {
    "import torch, lightning": ("-c", "import torch, lightning"),
    "import torch, lightning, lit_ddpm": ("-c", "import torch, lightning, lit_ddpm"),
    "lit-ddpm --help": ("-m", "lit_ddpm", "--help"),
}


def starting(rounds: int) -> tuple[str, Any]:
    """A table of processes that only start, in turns."""
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, arguments in STARTS.items():
            command = [sys.executable, *arguments]
            spent = seconds(lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
            if number > 0:  # the first reads the files from the disk
                found[name].append(spent)
    base = next(iter(found.values()))
    rows = [[f"`{name}`", spread(values), ratios(values, base)] for name, values in found.items()]
    return table(["", "s", "times the first"], rows), found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as place:
        fits, results = training(Path(place), args.rounds)
        print(f"{machine()}\n\n{fits}\n", flush=True)
        text, more = measuring(Path(place), args.rounds)
    print(f"{text}\n")
    starts, more["starting"] = starting(2 * args.rounds)
    print(starts)
    save(args.json, {"training": results, **more})


if __name__ == "__main__":
    main()
