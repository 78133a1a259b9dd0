"""Images a second of the data modules in memory, beside the same images one item at a time.

python -m benchmarks.loading

All loaders are torch's, in the main process, with batches of 128. "Items" indexes tensors image by image; "as
torchvision" also makes a PIL image and back of each, as torchvision's sets with their usual transforms do. Prints the
medians of interleaved epochs, how many times as fast ours is, and what share of a training step of a small network
waits for a batch.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Iterable
from typing import Any

import lightning
import torch
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lit_ddpm import DDPM, UNet
from lit_ddpm.data import DigitsDataModule, ImageDataModule, ImageTensors


class CIFARSized(ImageDataModule):
    """10,000 random images of the size of CIFAR-10's."""

    image_shape = (3, 32, 32)

    def splits(self) -> dict[str, ImageTensors]:
        """See `ImageDataModule.splits`."""
        images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8)
        return dict.fromkeys(("train", "val", "test"), ImageTensors(images, torch.zeros(10_000, dtype=torch.int64)))


class Items(Dataset[Any]):
    """One image at a time."""

    def __init__(self, split: ImageTensors, as_torchvision: bool) -> None:
        self.split = split
        steps = [v2.ToPILImage(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)] if as_torchvision else []
        self.transform = v2.Compose([v2.Identity(), *steps])

    def __len__(self) -> int:
        """The number of images."""
        return len(self.split)

    def __getitem__(self, index: int) -> Any:
        """One image and its label."""
        image, label = self.split[index]
        return self.transform(image), label


def images_per_second(loader: Iterable[Any]) -> float:
    """Of one epoch."""
    start, count = time.perf_counter(), 0
    for images, _ in loader:
        count += len(images)
    return count / (time.perf_counter() - start)


def share_of_waiting(data: ImageDataModule, steps: int = 12) -> float:
    """What share of a training step passes until its batch is there, in medians."""
    profiler = SimpleProfiler()
    shape = data.image_shape
    assert shape is not None
    module = DDPM(UNet(shape[0], width=32, multipliers=[1, 2]))
    trainer = lightning.Trainer(
        profiler=profiler,
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    loop = "[_TrainingEpochLoop]"
    durations = profiler.recorded_durations
    waiting = statistics.median(durations[f"{loop}.train_dataloader_next"])
    return waiting / (waiting + statistics.median(durations["run_training_batch"]))


def main() -> None:
    """Measures and prints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    print(f"{'images':<20}{'ours/s':>12}{'items/s':>12}{'ratio':>8}{'as torchvision/s':>19}{'ratio':>8}{'waiting':>10}")
    for data in (DigitsDataModule(batch_size=128), CIFARSized(batch_size=128)):
        data.setup("fit")
        split: Any = data.splits()["train"]
        others = [DataLoader(Items(split, way), batch_size=128, shuffle=True, drop_last=True) for way in (False, True)]
        loaders = [data.train_dataloader(), *others]
        rows = [[images_per_second(loader) for loader in loaders] for _ in range(args.epochs)]
        ours, items, torchvision = (statistics.median(column) for column in zip(*rows, strict=True))
        ratios = f"{items:12,.0f}{ours / items:8.1f}{torchvision:19,.0f}{ours / torchvision:8.1f}"
        print(f"{type(data).__name__:<20}{ours:12,.0f}{ratios}{share_of_waiting(data):10.2%}")


if __name__ == "__main__":
    main()
