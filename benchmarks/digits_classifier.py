"""Training of the classifier whose features `lit_ddpm.metrics.DigitsFeatures` uses.

Trains on the digits' training split and prints the accuracy on all splits; ``--write`` replaces the weights in the
package.
"""

import math
from argparse import Namespace

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.metrics import digits_as_uint8
from lit_ddpm.data import DigitsDataModule
from lit_ddpm.metrics import DigitsFeatures
from lit_ddpm.metrics.digits_features import DigitsClassifier

EPOCHS, BATCH, RATE = 60, 64, 5e-3

OPTIONS = {
    "--write": {"action": "store_true", "help": f"replace {DigitsFeatures.weights_path.name}"},
}


def train(images: Tensor, labels: Tensor) -> DigitsClassifier:
    """Trains a classifier on images that are randomly shifted by up to a pixel."""
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


def main(args: Namespace) -> dict[str, float]:
    """Trains and measures the accuracy."""
    splits = DigitsDataModule().splits()
    images = {name: digits_as_uint8(split) for name, split in splits.items()}
    classifier = train(images["train"], splits["train"].labels)
    accuracy = {
        name: float((classifier(images[name])[1].argmax(1) == split.labels).float().mean())
        for name, split in splits.items()
    }
    for name, share in accuracy.items():
        print(f"accuracy on {name:<5} {100 * share:6.2f}%")
    if args.write:
        save_file(classifier.state_dict(), DigitsFeatures.weights_path)
    size = sum(p.numel() * p.element_size() for p in classifier.parameters()) / 1024
    print(f"{size:.0f} KiB of weights{' written' if args.write else ''}")
    return accuracy
