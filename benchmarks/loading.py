"""Loading speed of the data modules in memory, compared with loaders that read item by item.

All loaders are torch's, in the main process, with batches of 128. "Item by item" indexes tensors image by image; "as
torchvision" also converts each image to PIL and back, like torchvision's datasets with their usual transforms. Prints
the medians of epochs that take turns, the ratios of these medians, and the share of a training step of a small network
that waits for a batch.
"""

import statistics
from argparse import Namespace
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from typing_extensions import override

from benchmarks.common.clock import in_turns, now
from benchmarks.common.fits import silent_trainer
from benchmarks.common.images import RandomDataModule
from benchmarks.common.report import table
from lit_ddpm import DDPM, UNet
from lit_ddpm.data import DigitsDataModule, ImageDataModule, ImageTensors

OPTIONS = {
    "--epochs": {"type": int, "default": 5},
}


class Items(Dataset[Any]):
    """Images that are read one at a time.

    Args:
        split: The images.
        as_torchvision: Convert each to PIL and back.
    """

    def __init__(self, split: ImageTensors, as_torchvision: bool) -> None:
        self.split = split
        steps = [v2.ToPILImage(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)] if as_torchvision else []
        self.transform = v2.Compose([v2.Identity(), *steps])

    def __len__(self) -> int:
        """Counts the images."""
        return len(self.split)

    @override
    def __getitem__(self, index: int) -> Any:
        image, label = self.split[index]
        return self.transform(image), label


def images_per_second(loader: Iterable[Any]) -> float:
    """Reads one epoch."""
    start = now()
    count = sum(len(images) for images, _ in loader)
    return count / (now() - start)


def waiting_share(data: ImageDataModule, steps: int = 12) -> float:
    """Trains and returns the median share of a step that passes until its batch is there."""
    profiler = SimpleProfiler()
    module = DDPM(UNet(data.image_shape[0], width=32, multipliers=[1, 2]))
    silent_trainer(profiler=profiler, max_steps=steps, logger=False).fit(module, data)
    durations = profiler.recorded_durations
    waiting = statistics.median(durations["[_TrainingEpochLoop].train_dataloader_next"])
    return waiting / (waiting + statistics.median(durations["run_training_batch"]))


def main(args: Namespace) -> dict[str, dict[str, float]]:
    """Measures the digits and random images of the size of CIFAR-10's."""
    figures: dict[str, dict[str, float]] = {}
    for data in (DigitsDataModule(batch_size=128), RandomDataModule(batch_size=128)):
        data.setup("fit")
        split = data.splits()["train"]
        loaders = {"batches": data.train_dataloader()}
        for name, as_torchvision in {"items": False, "torchvision": True}.items():
            loaders[name] = DataLoader(Items(split, as_torchvision), batch_size=128, shuffle=True, drop_last=True)
        speeds = in_turns({name: partial(images_per_second, loader) for name, loader in loaders.items()}, args.epochs)
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        figures[type(data).__name__] = medians | {"waiting": waiting_share(data)}
    rows = []
    for name, f in figures.items():
        others = [
            cell for way in ("items", "torchvision") for cell in (f"{f[way]:,.0f}", f"{f['batches'] / f[way]:.1f}")
        ]
        rows.append([name, f"{f['batches']:,.0f}", *others, f"{f['waiting']:.2%}"])
    print(table(["", "images/s", "item by item", "ratio", "as torchvision", "ratio", "waiting"], rows))
    return figures
