"""Three programmes that train a diffusion model, each by its own public interface, on the same files of images.

Ours through Lightning; `diffusers` in the loop of its guide to unconditional training; `denoising-diffusion-pytorch`
through its `Trainer`. All three read a folder of PNG files, average the weights and clip gradients.
"""

import contextlib
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from benchmarks.report import now


@dataclass(frozen=True)
class Setting:
    """What all programmes are asked to do.

    Attributes:
        folder: Where the images are, square PNG files.
        image_size: Their height and width in pixels.
        channels: 1 or 3.
        width: Channels of the network at full resolution.
        batch_size: Images in a training step.
        precision: ``"32-true"`` or ``"bf16-mixed"``.
        channels_last: Lay images out channels last; ours only, like what follows.
        compile: Compile the network.
        without: What to do the slow way, for comparison: ``"memory"`` (decode each image each time), ``"fused"`` (an
            optimizer that goes parameter by parameter), ``"foreach"`` (an average that does), ``"sdpa"`` (attention
            step by step).
    """

    folder: str
    image_size: int = 32
    channels: int = 3
    width: int = 32
    batch_size: int = 16
    precision: str = "32-true"
    channels_last: bool = True
    compile: bool = False
    without: Sequence[str] = ()


class Programme(ABC):
    """A way to train a model and to draw from it.

    Attributes:
        name: What the tables call it.
        network: The network that is trained.
    """

    name: str
    network: nn.Module

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def train(self, num_steps: int, seconds: float = float("inf")) -> list[float]:
        """Trains for so many steps or seconds, whichever is over first, and returns the seconds that each step took.

        The first step of a training has no beginning of its own and is left out.
        """

    @abstractmethod
    def sample(self, num_images: int, num_steps: int) -> Tensor:
        """Images in [-1, 1], ``[B, C, H, W]``, drawn by DDIM in so many steps with the averaged weights."""

    @property
    def size(self) -> int:
        """The number of the network's parameters."""
        return sum(weight.numel() for weight in self.network.parameters())

    def training(self, num_steps: int) -> float:
        """The median seconds of a whole training step."""
        return statistics.median(self.train(num_steps)[1:])

    def drawing(self, num_images: int, num_steps: int) -> float:
        """The seconds of a reverse step of a batch."""
        start = now()
        images = self.sample(num_images, num_steps)
        seconds = (now() - start) / num_steps
        if len(images) != num_images or not bool(torch.isfinite(images).all()):
            raise RuntimeError(f"{self.name} drew {list(images.shape)}, or images that are not finite.")
        return seconds


class _Ticks:
    """When each step ended."""

    def __init__(self, num_steps: int, seconds: float) -> None:
        self.times: list[float] = []
        self.num_steps, self.seconds = num_steps, seconds

    def __call__(self) -> bool:
        """Notes a step down; whether there should be no more."""
        self.times.append(now())
        return len(self.times) >= self.num_steps or self.times[-1] - self.times[0] >= self.seconds

    @property
    def durations(self) -> list[float]:
        return [after - before for before, after in pairwise(self.times)]


class Ours(Programme):
    """`lit_ddpm` with Lightning's Trainer, a logger of the run and `EMA`."""

    name = "lit_ddpm"
    ema_decay = 0.9999
    gradient_clip_val = 1.0

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import lightning

        from lit_ddpm.data import ImageFolderDataModule

        lightning.seed_everything(0, verbose=False)
        self.losses: list[float] = []
        self.module = self.make_module()
        self.network = self.module.denoiser.network
        self.data = ImageFolderDataModule(
            setting.folder,
            image_size=setting.image_size,
            channels=setting.channels,
            batch_size=setting.batch_size,
            val_size=1,
            test_size=1,
            in_memory="memory" not in setting.without,
        )

    def make_module(self) -> Any:
        """The network of Ho et al. with the optimizer of the guide of `diffusers`."""
        from lit_ddpm import DDPM, UNet

        setting = self.setting
        network = UNet(
            setting.channels,
            width=setting.width,
            multipliers=(1, 2, 2, 2),
            num_blocks=2,
            attention_levels=(1,),
            head_channels=2 * setting.width,
            dropout=0.0,
        )

        def adamw(params: Any) -> torch.optim.Optimizer:
            kind = {"fused": True} if "fused" not in setting.without else {"foreach": False}
            return torch.optim.AdamW(params, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, **kind)

        return DDPM(network, optimizer=adamw, compile=setting.compile, channels_last=setting.channels_last)

    def train(self, num_steps: int, seconds: float = float("inf")) -> list[float]:
        """See `Programme.train`."""
        import lightning

        from lit_ddpm.callbacks import EMA
        from lit_ddpm.training.run_directory import RunLogger

        class OneByOne(EMA):
            def _average(self, average: list[Tensor], current: list[Tensor], num_averaged: Any) -> None:
                for mean, value in zip(average, current, strict=True):
                    mean.lerp_(value, 1 - self.decay_at(self._latest_update_step))

        ticks, losses = _Ticks(num_steps, seconds), []
        slow = self.setting.without
        average = (OneByOne if "foreach" in slow else EMA)(self.ema_decay)
        attention = torch.nn.attention.sdpa_kernel(SDPBackend.MATH) if "sdpa" in slow else contextlib.nullcontext()

        class Watch(lightning.Callback):
            def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, *_: Any) -> None:
                trainer.should_stop = ticks()
                losses.append(outputs["loss"].detach())

        with attention, tempfile.TemporaryDirectory() as directory:
            trainer = lightning.Trainer(
                max_epochs=-1,
                precision=self.setting.precision,
                gradient_clip_val=self.gradient_clip_val,
                callbacks=[average, Watch()],
                logger=RunLogger(directory),
                default_root_dir=directory,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(self.module, self.data)
        self.autocast = trainer.precision_plugin.forward_context
        self.losses += torch.stack(losses).tolist()
        return ticks.durations

    def sample(self, num_images: int, num_steps: int) -> Tensor:
        """See `Programme.sample`."""
        from lit_ddpm import DDIMSampler

        with self.autocast():
            return self.module.sample(num_images, sampler=DDIMSampler(num_steps, chunk_size=num_images)).clamp(-1, 1)


class Diffusers(Programme):
    """`diffusers`: `UNet2DModel`, `DDPMScheduler` and `EMAModel` in a loop with `accelerate`, as in its guide."""

    name = "diffusers"

    def __init__(self, setting: Setting, **network: Any) -> None:
        super().__init__(setting)
        from accelerate import Accelerator
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel
        from torch.utils.data import DataLoader
        from torchvision import transforms

        width = setting.width
        of_ho_et_al = {
            "block_out_channels": (width, 2 * width, 2 * width, 2 * width),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2 * width,
        }
        model = UNet2DModel(
            sample_size=setting.image_size,
            in_channels=setting.channels,
            out_channels=setting.channels,
            layers_per_block=2,
            **(network or of_ho_et_al),
        )
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.ema = EMAModel(
            model.parameters(), decay=0.9999, use_ema_warmup=True, model_cls=UNet2DModel, model_config=model.config
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        steps = [
            transforms.Resize(setting.image_size),
            transforms.CenterCrop(setting.image_size),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
        images = _Folder(setting, transforms.Compose(steps))
        loader = DataLoader(images, batch_size=setting.batch_size, shuffle=True, drop_last=True)
        self.accelerator = Accelerator(mixed_precision="bf16" if setting.precision == "bf16-mixed" else "no")
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
        self.network, self.optimizer, self.loader, self.rate = self.accelerator.prepare(model, optimizer, loader, rate)
        self.ema.to(self.accelerator.device)

    def train(self, num_steps: int, seconds: float = float("inf")) -> list[float]:
        """See `Programme.train`."""
        ticks = _Ticks(num_steps, seconds)
        self.network.train()
        for clean in _forever(self.loader):
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (len(clean),), device=clean.device)
            noisy = self.scheduler.add_noise(clean, noise, t)
            with self.accelerator.accumulate(self.network):
                loss = nn.functional.mse_loss(self.network(noisy, t).sample.float(), noise.float())
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
                self.optimizer.step()
                self.rate.step()
                self.optimizer.zero_grad()
            self.ema.step(self.network.parameters())
            loss.detach().item()  # for the progress bar and the log
            if ticks():
                break
        return ticks.durations

    def sample(self, num_images: int, num_steps: int) -> Tensor:
        """See `Programme.sample`."""
        from diffusers import DDIMPipeline, DDIMScheduler

        network = self.accelerator.unwrap_model(self.network)
        self.ema.store(network.parameters())
        self.ema.copy_to(network.parameters())
        pipeline = DDIMPipeline(network.eval(), DDIMScheduler.from_config(self.scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        with self.accelerator.autocast():
            images = pipeline(num_images, num_inference_steps=num_steps, output_type="np", return_dict=False)[0]
        self.ema.restore(network.parameters())
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


class DenoisingDiffusionPytorch(Programme):
    """`denoising-diffusion-pytorch`: `Unet`, `GaussianDiffusion` and its `Trainer`."""

    name = "denoising-diffusion-pytorch"

    def __init__(
        self, setting: Setting, network: dict[str, Any] | None = None, training: dict[str, Any] | None = None
    ) -> None:
        super().__init__(setting)
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

        nearest = {"dim_mults": (1, 2, 2, 2), "full_attn": (False, True, False, False)}
        self.network = Unet(setting.width, channels=setting.channels, **(network or nearest))
        self.diffusion = GaussianDiffusion(self.network, image_size=setting.image_size, timesteps=1000)
        self._place = tempfile.TemporaryDirectory()
        self.trainer = Trainer(
            self.diffusion,
            setting.folder,
            train_batch_size=setting.batch_size,
            results_folder=self._place.name,
            calculate_fid=False,
            augment_horizontal_flip=False,
            save_and_sample_every=10**9,
            amp=setting.precision == "bf16-mixed",
            mixed_precision_type="bf16",
            **(training or {}),
        )

    def train(self, num_steps: int, seconds: float = float("inf")) -> list[float]:
        """See `Programme.train`."""
        ticks = _Ticks(num_steps, seconds)
        trainer, update = self.trainer, self.trainer.ema.update

        def update_and_tick() -> None:
            update()
            if ticks():
                trainer.train_num_steps = 0  # the loop ends

        trainer.train_num_steps = 10**9
        trainer.ema.update = update_and_tick
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train()
        trainer.ema.update = update
        return ticks.durations

    def sample(self, num_images: int, num_steps: int) -> Tensor:
        """See `Programme.sample`."""
        averaged = self.trainer.ema.ema_model.eval()
        averaged.sampling_timesteps, averaged.is_ddim_sampling = num_steps, True
        with contextlib.redirect_stderr(io.StringIO()), self.trainer.accelerator.autocast():
            images: Tensor = averaged.sample(num_images)
        return images * 2 - 1


class _Folder(torch.utils.data.Dataset[Tensor]):
    """The files of a folder, as the guide's transforms give them."""

    def __init__(self, setting: Setting, transform: Any) -> None:
        self.paths = sorted(Path(setting.folder).glob("**/*.png"))
        self.mode, self.transform = {1: "L", 3: "RGB"}[setting.channels], transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image

        image: Tensor = self.transform(Image.open(self.paths[index]).convert(self.mode))
        return image


def _forever(loader: Any) -> Iterator[Tensor]:
    while True:
        yield from loader


PROGRAMMES: dict[str, type[Programme]] = {p.name: p for p in (Ours, Diffusers, DenoisingDiffusionPytorch)}


ANSWER = "answer: "


class Contestant:
    """A programme in a process of its own, so that none shares state, memory or threads with another.

    Args:
        name: The programme, of `PROGRAMMES`.
        setting: What it is asked to do.

    Attributes:
        start_seconds: How long it took until the second training step had ended.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        command = [sys.executable, "-m", "benchmarks.programmes", name, json.dumps(asdict(setting))]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask("train", 2)
        self.start_seconds = time.perf_counter() - start

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the programme returns, or the value of an attribute."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([method, args]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"{' '.join(self.process.args)} ended with {self.process.wait()}.")

    def end(self) -> float:
        """Ends it, and returns its peak memory in GiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_maxrss / 2**20


def write_images(folder: Path, images: Tensor) -> str:
    """Writes images, uint8 ``[N, C, H, W]``, as PNG files into a new folder, and returns its name."""
    from torchvision.transforms.v2.functional import to_pil_image

    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        to_pil_image(image).save(folder / f"{number:05d}.png")
    return str(folder)


def quiet() -> None:
    """Keeps the programmes from talking between the rows of a table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def main() -> None:
    """Answers a `Contestant`."""
    quiet()
    programme = PROGRAMMES[sys.argv[1]](Setting(**json.loads(sys.argv[2])))
    for line in sys.stdin:
        method, args = json.loads(line)
        found = getattr(programme, method)
        print(ANSWER + json.dumps(found(*args) if callable(found) else found), flush=True)


if __name__ == "__main__":
    main()
