"""Images a second of the data modules in memory, beside the same images one item at a time.

python -m benchmarks.loading

Both loaders are torch's, in the main process, with batches of one size; only the way from indices to a batch differs.
Prints the medians of interleaved epochs, and their ratio.
"""

import argparse
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from lit_ddpm.data import DigitsDataModule, ImageDataModule, ImageTensors


class CIFARSized(ImageDataModule):
    """Random images of the size and number of CIFAR-10's."""

    image_shape = (3, 32, 32)

    def splits(self) -> dict[str, ImageTensors]:
        """See `ImageDataModule.splits`."""
        images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
        return dict.fromkeys(("train", "val", "test"), ImageTensors(images, torch.zeros(50_000, dtype=torch.int64)))


def images_per_second(loader: Iterable[Any]) -> float:
    """Of one epoch."""
    start, count = time.perf_counter(), 0
    for images, _ in loader:
        count += len(images)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    print(f"{'images':<24}{'ours/s':>12}{'by item/s':>12}{'ratio':>8}")
    for data in (DigitsDataModule(batch_size=128), CIFARSized(batch_size=128)):
        data.setup("fit")
        split: Any = data.splits()["train"]
        by_item = DataLoader(TensorDataset(split.images, split.labels), batch_size=128, shuffle=True, drop_last=True)
        rows = [(images_per_second(data.train_dataloader()), images_per_second(by_item)) for _ in range(args.epochs)]
        ours, theirs = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{type(data).__name__:<24}{ours:12,.0f}{theirs:12,.0f}{ours / theirs:8.1f}")


if __name__ == "__main__":
    main()
