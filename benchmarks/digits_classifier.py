"""Trains the classifier in whose features `lit_ddpm.metrics.DigitsFeatures` compares digits, and prints its accuracy.

python -m benchmarks.digits_classifier               # trains, prints, writes nothing
python -m benchmarks.digits_classifier --write       # replaces the weights in the package

Only the training split is seen.
"""

import argparse
import math

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lit_ddpm.data import DigitsDataModule, ImageTensors, to_float, to_uint8
from lit_ddpm.metrics.digits import DigitsClassifier, DigitsFeatures

EPOCHS, BATCH, RATE = 60, 64, 5e-3


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace {DigitsFeatures.weights_path.name}")
    args = parser.parse_args()

    splits = DigitsDataModule().splits()
    images = {name: as_uint8(split) for name, split in splits.items()}
    classifier = train(images["train"], splits["train"].labels)
    for name, split in splits.items():
        found = classifier(images[name])[1].argmax(1)
        print(f"accuracy on {name:<5} {100 * float((found == split.labels).float().mean()):6.2f}%")
    if args.write:
        save_file(classifier.state_dict(), DigitsFeatures.weights_path)
    size = sum(p.numel() * p.element_size() for p in classifier.parameters()) / 1024
    print(f"{size:.0f} KiB of weights{' written' if args.write else ''}")


def as_uint8(split: ImageTensors) -> Tensor:
    """The images of a split as the extractor sees them."""
    return to_uint8(to_float(split.images, DigitsDataModule.levels), DigitsDataModule.levels)


def train(images: Tensor, labels: Tensor) -> DigitsClassifier:
    """A classifier trained on images that are shifted by up to a pixel."""
    torch.manual_seed(0)
    classifier = DigitsClassifier()
    steps = math.floor(len(images) / BATCH)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH)[:steps]:
            top, left = torch.randint(0, 3, (2,)).tolist()
            shifted = F.pad(images[rows], (1, 1, 1, 1))[:, :, top : top + 8, left : left + 8]
            loss = F.cross_entropy(classifier(shifted)[1], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


if __name__ == "__main__":
    main()
