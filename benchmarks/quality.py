"""Bits/dim and FID of lit_ddpm, diffusers and denoising-diffusion-pytorch after the same training time on MNIST.

Each trains for ten minutes on the same cores with its documented defaults, in bfloat16 mixed precision: lit_ddpm with
``configs/mnist.yaml`` as in ``docs/datasets.md``, `diffusers` with the network and the settings of its guide to
unconditional training, `denoising-diffusion-pytorch` with those of its README. Digits are padded to 32x32, since the
networks of the other two halve an image many times. The ledger of lit_ddpm measures all three models, each through its
own network and noise schedule. The FID is that of samples by DDIM in the same number of steps, in the features of a
small classifier that is trained here.
"""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common.images import MNISTFiles, image_folder, write_grid
from benchmarks.common.metrics import ImageMetrics
from benchmarks.common.report import table
from benchmarks.libraries import LIBRARIES, library
from benchmarks.libraries.base import Library
from lit_ddpm import Denoiser, DiscretizedGaussian, variational_bound
from lit_ddpm.data import to_float, to_uint8
from lit_ddpm.diffusion.ledger import Ledger
from lit_ddpm.diffusion.report import Report

OPTIONS = {
    "--root": {"required": True, "help": "the folder with the files of MNIST's test split"},
    "--minutes": {"type": float, "default": 10},
    "--images": {"type": int, "default": 100, "help": "held-out images for the bound"},
    "--calls": {"type": int, "default": 32, "help": "network calls per image for the bound"},
    "--samples": {"type": int, "default": 256, "help": "samples for the FID"},
    "--steps": {"type": int, "default": 20, "help": "steps of DDIM"},
    "--pictures": {"help": "a folder for a grid of each library's samples"},
}


class Classifier(nn.Module):
    """A small classifier of uint8 digits ``[N, 1, 32, 32]`` that returns 64 features and the logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU())
        self.classes = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features ``[N, 64]`` and logits ``[N, 10]``."""
        features = self.features(to_float(images, 256))
        return features, self.classes(features)


def train_classifier(images: Tensor, labels: Tensor) -> Classifier:
    """Trains the classifier."""
    torch.manual_seed(0)
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3)
    for _ in range(4):
        for rows in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(classifier(images[rows])[1], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier.eval()


def ledger_of(denoiser: Denoiser, images: Tensor, num_calls: int) -> Report:
    """Estimates the bound of uint8 images."""
    ledger = Ledger(denoiser.schedule.num_steps, num_calls)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for first in range(0, len(images), 50):
            batch = to_float(images[first : first + 50], 256)
            index = torch.arange(first, first + len(batch))
            ledger.update(variational_bound(denoiser, batch, DiscretizedGaussian(256), num_calls, index=index))
    return ledger.report()


def train_and_measure(model: Library, test: Tensor, metrics: ImageMetrics, args: Namespace) -> tuple[Any, Tensor]:
    """Trains a library's model and returns its figures and its samples, uint8."""
    start = time.perf_counter()
    steps = len(model.train(10**9, 60 * args.minutes)) + 1
    minutes = (time.perf_counter() - start) / 60
    total = ledger_of(model.denoiser(), test[: args.images], args.calls).terms["total"]
    chunks = [model.sample(64, args.steps) for _ in range(-(-args.samples // 64))]
    samples = to_uint8(torch.cat(chunks)[: args.samples])
    figures = {"parameters": model.num_parameters(), "minutes": minutes, "steps": steps}
    figures |= {"bpd": total.value, "bpd_error": total.se_images + total.se_noise}
    return figures | metrics(samples, kid_subset_size=min(100, args.samples // 2)), samples


def main(args: Namespace) -> dict[str, Any]:
    """Trains and measures all libraries."""
    splits = MNISTFiles(args.root).splits()
    train, test = (F.pad(splits[name].images, (2, 2, 2, 2)) for name in ("train", "test"))
    metrics = ImageMetrics(train_classifier(train, splits["train"].labels), train)
    correct = metrics.extractor(test)[1].argmax(1) == splits["test"].labels
    print(f"The classifier's accuracy on the test split is {100 * float(correct.float().mean()):.1f}%.\n")
    rows, figures = [], {}
    with image_folder(train) as folder:
        for name in LIBRARIES:
            torch.manual_seed(0)
            model = library(name).with_documented_defaults(folder)
            f, samples = train_and_measure(model, test, metrics, args)
            figures[name] = f
            size, error = f"{f['parameters'] / 1e6:.1f} M", f"{f['bpd']:.3f} ± {f['bpd_error']:.3f}"
            rows.append([name, size, f"{f['minutes']:.1f}", f"{f['steps']:,}", error, f"{f['fid']:.2f}"])
            print(f"{name}: {rows[-1][1:]}", flush=True)
            if args.pictures:
                write_grid(Path(args.pictures) / f"{name}.png", samples[:64])
    print(f"\n{table(['library', 'parameters', 'minutes', 'steps', 'bits/dim', 'FID'], rows)}")
    return figures
