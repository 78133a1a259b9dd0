"""Bits/dim and FID of models of equal size after 1, 3 and 10 minutes of one core on MNIST, for three seeds.

lit_ddpm trains ``configs/mnist.yaml`` in bfloat16. `diffusers` and `denoising-diffusion-pytorch` train a network of the
same size with the other settings of their documentation. ``--rows changes`` gives lit_ddpm one setting of `diffusers`
at a time, for three minutes. On two cores the first takes about an hour, and the changes take 40 minutes.

The clock is the CPU time of the training process, which runs on one core; two trainings run side by side. At each mark
the clock stops, and the bound and the sampler of lit_ddpm measure the averaged model, with the same images and noise
for all. The FID is in the features of a small classifier that is trained here. Complete trainings are not repeated.
"""

import json
import statistics
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator
from torch import Tensor

from benchmarks.common.classifier import train_classifier
from benchmarks.common.images import MNISTFiles, image_folder, write_grid
from benchmarks.common.metrics import ImageMetrics
from benchmarks.common.report import mean_and_deviation, silence, table
from benchmarks.libraries import library
from benchmarks.libraries.base import Budget, Library, Setting
from lit_ddpm import DDIMSampler, Denoiser, DiscretizedGaussian, variational_bound
from lit_ddpm.cli.configs import find_config
from lit_ddpm.data import to_float, to_uint8
from lit_ddpm.likelihood.report import Report

NUM_IMAGES, NUM_CALLS = 100, 32  # of the bound: held-out images, and network calls for each
IMAGE_SIZE = 28
NUM_SAMPLES, NUM_STEPS = 256, 20  # of the FID: samples, and steps of DDIM

EPS_MSE = (
    *("--model.parametrization=lit_ddpm.EpsParametrization", "--model.objective=lit_ddpm.PredictionMSE"),
    "--model.timesteps=lit_ddpm.UniformTimesteps",
)
LINEAR = ("--model.schedule=lit_ddpm.LinearSchedule", "--model.network.time=t")
PLAIN_NETWORK = ("--model.network.fourier_features=[]",)


@dataclass(frozen=True)
class Row:
    """A training: a program, with the options of its class."""

    program: str
    config: str = "mnist"  # of lit_ddpm, with further options of the command
    options: Sequence[str] = ()
    guide: bool = False  # whether lit_ddpm has the optimizer steps of the guide of diffusers
    batch_size: int = 16  # of the other programs, with the arguments of their networks
    network: dict[str, Any] = field(default_factory=dict)

    def library(self, folder: str, seed: int) -> Library:
        """Makes the model to train, in bfloat16."""
        size = {"image_size": IMAGE_SIZE, "batch_size": self.batch_size, "channels": 1}
        setting = Setting(folder, width=24, precision="bf16-mixed", seed=seed, **size)
        kind: Any = library(self.program)
        if self.program == "lit_ddpm":
            from benchmarks.libraries.lit_ddpm import Configured

            return Configured(setting, self.config, self.options, self.guide)
        if self.program == "diffusers":
            return kind(setting, self.network)  # type: ignore[no-any-return]
        from benchmarks.libraries.denoising_diffusion_pytorch import README

        return kind(setting, self.network, README)  # type: ignore[no-any-return]


ATTENTION = {
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
SAME_SIZE = {"block_out_channels": (24, 48, 72), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 24}
DDP = "denoising-diffusion-pytorch"
ROWS = {
    "programs": {
        "lit_ddpm": Row("lit_ddpm"),
        "diffusers": Row("diffusers", network=ATTENTION | SAME_SIZE),
        DDP: Row(DDP, batch_size=32, network={"dim_mults": (1, 2, 3), "full_attn": (False, False, True)}),
    },
    "changes": {
        "lit_ddpm": Row("lit_ddpm"),
        "objective: eps-MSE at uniform timesteps": Row("lit_ddpm", options=EPS_MSE),
        "schedule: linear, the network gets t": Row("lit_ddpm", options=LINEAR),
        "network: no Fourier features": Row("lit_ddpm", options=PLAIN_NETWORK),
        "optimizer: of the guide, batches of 16": Row("lit_ddpm", guide=True),
        "all four": Row("lit_ddpm", options=(*EPS_MSE, *LINEAR, *PLAIN_NETWORK), guide=True),
        "diffusers": Row("diffusers", network=ATTENTION | SAME_SIZE),
    },
}
MINUTES = {"programs": (1.0, 3.0, 10.0), "changes": (3.0,)}

OPTIONS = {
    "--root": {"required": True, "help": "the folder with the files of MNIST's test split"},
    "--rows": {"choices": list(ROWS), "default": "programs"},
    "--entry": {"metavar": "CONFIG", "help": "train this configuration of lit_ddpm instead: a name or a file"},
    "--minutes": {"type": float, "nargs": "+", "help": "minutes of one core; by default 1 3 10, or 3 for changes"},
    "--seeds": {"type": int, "default": 3},
    "--jobs": {"type": int, "default": 2, "help": "trainings side by side, each on one core"},
    "--output_dir": {"type": Path, "default": Path("runs/quality"), "help": "for the figures of each training"},
}


def report_of(denoiser: Denoiser, images: Tensor) -> Report:
    """Estimates the bound of uint8 images."""
    decoder = DiscretizedGaussian(256)
    first, *others = (
        variational_bound(denoiser, to_float(images[index], 256), decoder, NUM_CALLS, index=index)
        for index in torch.arange(len(images)).split(50)
    )
    return sum(others, first).report()


@dataclass
class Training:
    """One training of a row, in its own process."""

    row: Row
    seed: int
    marks: Sequence[float]  # minutes
    folder: str
    metrics: ImageMetrics
    test: Tensor  # uint8
    path: Path  # of its figures

    @property
    def identity(self) -> dict[str, Any]:
        """What the figures depend on, as a file has it."""
        identity: dict[str, Any] = json.loads(json.dumps({"row": asdict(self.row), "minutes": list(self.marks)}))
        return identity

    def __call__(self) -> dict[str, Any]:
        """Trains and measures, and writes the figures and the samples of the last mark."""
        silence()
        torch.set_num_threads(1)
        budget = Budget([60 * mark for mark in self.marks], self.measure)
        torch.manual_seed(self.seed)
        self.model = self.row.library(self.folder, self.seed)
        self.found: dict[str, Any] = self.identity | {"parameters": self.model.num_parameters(), "marks": []}
        self.model.run(budget)
        write_grid(self.path.with_suffix(".png"), self.samples[:64])
        self.path.write_text(json.dumps(self.found, indent=1))
        return self.found

    def measure(self, seconds: float, num_steps: int) -> None:
        """Measures the averaged model at a mark, in bfloat16; the state of torch's generator stays as it was."""
        with torch.random.fork_rng(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            denoiser = self.model.denoiser()
            total = report_of(denoiser, self.test[:NUM_IMAGES]).terms["total"]
            shape = (NUM_SAMPLES, 1, IMAGE_SIZE, IMAGE_SIZE)
            self.samples = to_uint8(DDIMSampler(NUM_STEPS)(denoiser, shape).clamp(-1, 1))
        figures = {"minutes": seconds / 60, "steps": num_steps, "bpd": total.value}
        figures |= {"se_images": total.se_images, "se_noise": total.se_noise}
        fid = self.metrics(self.samples, kid_subset_size=NUM_SAMPLES // 2)["fid"]
        self.found["marks"].append(figures | {"fid": fid})


def run(training: Training) -> dict[str, Any]:
    """Runs a training unless a file has its figures; a function of the module, for another process."""
    if training.path.is_file():
        found: dict[str, Any] = json.loads(training.path.read_text())
        if all(found.get(name) == value for name, value in training.identity.items()):
            return found
    return training()


def plot(path: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Draws bits/dim and FID against minutes, with a line for each seed."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, key, label, scale in zip(axes, ("bpd", "fid"), ("bits/dim", "FID"), ("linear", "log"), strict=True):
        for number, (name, seeds) in enumerate(found.items()):
            for seed, training in enumerate(seeds):
                points = [(mark["minutes"], mark[key]) for mark in training["marks"]]
                axis.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label="" if seed else name, alpha=0.7)
        axis.set(xscale="log", yscale=scale, xlabel="minutes of one core", ylabel=label)
        axis.set_xticks(minutes := [mark["minutes"] for mark in seeds[0]["marks"]], [f"{m:g}" for m in minutes])
        axis.xaxis.set_minor_locator(NullLocator())
        for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatted("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def quality_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Formats the mean and the standard deviation over the seeds at each mark."""
    rows = []
    for name, seeds in found.items():
        for marks in zip(*(training["marks"] for training in seeds), strict=True):
            rows.append(
                [
                    name,
                    f"{seeds[0]['parameters'] / 1e6:.2f} M",
                    f"{marks[0]['minutes']:g}",
                    f"{statistics.median(mark['steps'] for mark in marks):,.0f}",
                    mean_and_deviation([mark["bpd"] for mark in marks]),
                    mean_and_deviation([mark["fid"] for mark in marks], ".1f"),
                ]
            )
    return table(["training", "parameters", "minutes", "steps", "bits/dim", "FID"], rows)


def main(args: Namespace) -> dict[str, Any]:
    """Trains and measures all rows."""
    kind, rows = args.rows, ROWS[args.rows]
    if args.entry:
        config = find_config(args.entry, "entry")  # refuses what is neither a file nor a name
        kind, rows = config.stem, {args.entry: Row("lit_ddpm", str(config))}
    splits = MNISTFiles(args.root).splits()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    train, test = splits["train"].images, splits["test"].images
    metrics = ImageMetrics(train_classifier(train, splits["train"].labels), train)
    correct = metrics.extractor(test)[1].argmax(1) == splits["test"].labels
    print(f"The classifier's accuracy on the test split is {100 * float(correct.float().mean()):.1f}%.\n", flush=True)
    found: dict[str, list[Any]] = {name: [None] * args.seeds for name in rows}
    with image_folder(train) as folder, ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        waiting = {}
        for seed in range(args.seeds):
            for number, (name, row) in enumerate(rows.items()):
                path = args.output_dir / f"{kind}_{number}_{seed}.json"
                training = Training(row, seed, args.minutes or MINUTES[args.rows], folder, metrics, test, path)
                waiting[pool.submit(run, training)] = name, seed
        for future in as_completed(waiting):
            name, seed = waiting[future]
            found[name][seed] = future.result()
            last = found[name][seed]["marks"][-1]
            print(f"{name}, seed {seed}: {last['bpd']:.3f} bits/dim, FID {last['fid']:.1f}", flush=True)
    plot(args.output_dir / f"{kind}.png", found)
    print(f"\n{quality_table(found)}")
    return {"rows": {name: asdict(row) for name, row in rows.items()}, "trainings": found}
