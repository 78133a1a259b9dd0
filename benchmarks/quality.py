"""What three programmes reach in the same time on the same cores: ``python -m benchmarks quality --root DIRECTORY``.

Each trains on MNIST for ten minutes with its documented defaults, in bfloat16 mixed precision: ours with
``configs/mnist.yaml`` as ``docs/real_data.md`` has it for two cores, `diffusers` with the network and the settings of
its guide to unconditional training, `denoising-diffusion-pytorch` with those of its README. Digits are padded to 32x32,
since the peers' networks halve an image many times. Our ledger measures all three models, each through its own network
and noise schedule, and one FID all three sets of drawings: by DDIM in the same number of steps, in the features of a
small classifier that is trained here.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import save_image

from benchmarks.mnist_files import MNISTFiles
from benchmarks.programmes import DenoisingDiffusionPytorch, Diffusers, Ours, Programme, Setting, quiet, write_images
from benchmarks.report import machine, save, table
from lit_ddpm import (
    BetaSchedule,
    Denoiser,
    DiscretizedGaussian,
    EpsParametrization,
    Parametrization,
    VParametrization,
    variational_bound,
)
from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.data import to_float, to_uint8
from lit_ddpm.diffusion.ledger import Ledger, Report
from lit_ddpm.metrics.fid import RealStatistics, sample_metrics

CONFIG = Path(__file__).parent.parent / "configs" / "mnist.yaml"
GUIDE = {
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}
README = {"train_lr": 8e-5, "gradient_accumulate_every": 2, "ema_decay": 0.995}


class OurDefaults(Ours):
    """``configs/mnist.yaml``, whose learning rate falls to nothing within the time that there is."""

    ema_decay = 0.999
    gradient_clip_val = 0.01
    total_steps = 100

    def make_module(self) -> Any:
        """See `Ours.make_module`."""
        length = f"--model.lr_scheduler.total_steps={self.total_steps + 1}"
        return DDPMCLI(["--config", str(CONFIG), length, "--trainer.logger=false"], run=False).model

    def train(self, num_steps: int, seconds: float = float("inf")) -> list[float]:
        """See `Programme.train`; the time of the first steps, which find out how many there will be, counts too."""
        start = time.perf_counter()
        each = sorted(super().train(40))[20]
        self.total_steps = int(0.97 * (seconds - (time.perf_counter() - start)) / each)
        self.module = self.make_module()
        self.network = self.module.denoiser.network
        return super().train(min(num_steps, self.total_steps), seconds - (time.perf_counter() - start))


class Peer(nn.Module):
    """A network whose timesteps begin at 0, as one whose timesteps begin at 1."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The output for images ``[B, C, H, W]`` at timesteps ``[B]``."""
        return self.call(x_t, t - 1)


def denoiser_of(programme: Programme) -> Denoiser:
    """A programme's averaged model, its noise schedule and what its network predicts, for our ledger."""
    if isinstance(programme, Ours):
        denoiser: Denoiser = programme.module.denoiser
        return denoiser
    parametrization: Parametrization
    if isinstance(programme, Diffusers):
        network = programme.accelerator.unwrap_model(programme.network)
        programme.ema.copy_to(network.parameters())
        betas, parametrization = programme.scheduler.betas, EpsParametrization()
        peer = Peer(lambda x, t: network(x, t).sample)
    else:
        assert isinstance(programme, DenoisingDiffusionPytorch)
        averaged = programme.trainer.ema.ema_model
        betas, parametrization = averaged.betas, VParametrization()
        peer = Peer(averaged.model)
        network = averaged
    network.eval()
    # Clipped, as both peers' samplers have it.
    return Denoiser(peer, BetaSchedule(betas.double().tolist()), parametrization, clip=True)


def bound(programme: Programme, images: Tensor, num_calls: int) -> Report:
    """Our ledger of a programme's model, of uint8 images."""
    denoiser = denoiser_of(programme)
    ledger = Ledger(denoiser.schedule.num_steps, num_calls)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for first in range(0, len(images), 50):
            batch = to_float(images[first : first + 50], 256)
            index = torch.arange(first, first + len(batch))
            ledger.update(variational_bound(denoiser, batch, DiscretizedGaussian(256), num_calls, index=index))
    return ledger.report()


def classifier(images: Tensor, labels: Tensor) -> nn.Sequential:
    """A small classifier of uint8 digits ``[N, 1, 32, 32]``; all but its last layer gives the features."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU()), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(4):
        for rows in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(network(to_float(images[rows], 256)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="the folder with the files of MNIST's test split")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--images", type=int, default=100, help="held-out images for the bound")
    parser.add_argument("--calls", type=int, default=32, help="network calls an image for the bound")
    parser.add_argument("--drawings", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="of DDIM")
    parser.add_argument("--pictures", help="a folder for a grid of each programme's drawings")
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()
    quiet()
    splits = MNISTFiles(args.root).splits()
    train, test = (F.pad(splits[name].images, (2, 2, 2, 2)) for name in ("train", "test"))
    network = classifier(train, splits["train"].labels)
    with torch.no_grad():
        right = network(to_float(test, 256)).argmax(1) == splits["test"].labels
        real = RealStatistics.of_features(torch.cat([network[0](to_float(b, 256)) for b in train.split(500)]))
    print(f"{machine()}\n\nThe classifier is right about {100 * float(right.float().mean()):.1f}% of the test split.\n")

    rows, results = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder = write_images(Path(place) / "train", train)
        makers: dict[str, Callable[[], Programme]] = {
            Ours.name: lambda: OurDefaults(Setting(folder, 32, 1, batch_size=32, precision="bf16-mixed")),
            Diffusers.name: lambda: Diffusers(Setting(folder, 32, 1, batch_size=16, precision="bf16-mixed"), **GUIDE),
            DenoisingDiffusionPytorch.name: lambda: DenoisingDiffusionPytorch(
                Setting(folder, 32, 1, width=64, batch_size=32, precision="bf16-mixed"),
                {"dim_mults": (1, 2, 4, 8)},
                README,
            ),
        }
        for name, make in makers.items():
            torch.manual_seed(0)
            programme = make()
            start = time.perf_counter()
            steps = len(programme.train(10**9, 60 * args.minutes)) + 1
            minutes = (time.perf_counter() - start) / 60
            report = bound(programme, test[: args.images], args.calls)
            chunks = [programme.sample(64, args.steps) for _ in range(-(-args.drawings // 64))]
            drawings = to_uint8(torch.cat(chunks)[: args.drawings])
            with torch.no_grad():
                features = network[0](to_float(drawings, 256))
                logits = network[1](features)
            found = sample_metrics(real, features, logits, 100, min(100, args.drawings // 2), 1, 0)
            total = report.terms["total"]
            row = [f"{total.value:.3f} ± {total.se_images + total.se_noise:.3f}", f"{found['fid']:.2f}"]
            rows.append([name, f"{programme.size / 1e6:.1f} M", f"{minutes:.1f}", f"{steps:,}", *row])
            results[name] = {
                "parameters": programme.size,
                "minutes": minutes,
                "steps": steps,
                "bpd": total.value,
                **found,
            }
            print(f"{name}: {rows[-1][1:]}", flush=True)
            if args.pictures:
                path = Path(args.pictures) / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_image(drawings[:64].float() / 255, path, nrow=16)
    header = ["programme", "parameters", "minutes", "steps", "bits/dim", "FID"]
    print(f"\n{table(header, rows)}")
    save(args.json, results)


if __name__ == "__main__":
    main()
