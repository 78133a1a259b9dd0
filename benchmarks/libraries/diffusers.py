"""`diffusers`: `UNet2DModel`, `DDPMScheduler` and `EMAModel` in the training loop of its guide, with `accelerate`."""

import copy
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from typing_extensions import override

from benchmarks.libraries.base import Library, Setting, StepTimer


class Diffusers(Library):
    """A `UNet2DModel`: the same blocks as in `LitDDPM`, unless other arguments are given."""

    def __init__(self, setting: Setting, network: dict[str, Any] | None = None) -> None:
        super().__init__(setting)
        width = setting.width
        ho_et_al = {
            "block_out_channels": (width, 2 * width, 2 * width, 2 * width),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2 * width,
            "norm_num_groups": min(32, width),
        }
        model = UNet2DModel(
            sample_size=setting.image_size,
            in_channels=setting.channels,
            out_channels=setting.channels,
            **({"layers_per_block": 2} | (network or ho_et_al)),
        )
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.ema = EMAModel(
            model.parameters(), decay=0.9999, use_ema_warmup=True, model_cls=UNet2DModel, model_config=model.config
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        workers = {"num_workers": setting.num_workers, "persistent_workers": setting.num_workers > 0}
        loader = DataLoader(_Folder(setting), setting.batch_size, shuffle=True, drop_last=True, **workers)
        AcceleratorState._reset_state(reset_partial_state=True)  # that of another precision in this process
        self.accelerator = Accelerator(mixed_precision="bf16" if setting.precision == "bf16-mixed" else "no")
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
        if setting.compile:
            model.compile()
        self.network, self.optimizer, self.loader, self.rate = self.accelerator.prepare(model, optimizer, loader, rate)
        self.ema.to(self.accelerator.device)

    @override
    def run(self, timer: StepTimer) -> None:
        self.network.train()
        for clean in chain.from_iterable(repeat(self.loader)):
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
            if timer.step():
                break

    @override
    def sample(self, num_images: int, num_steps: int) -> Tensor:
        network = self.accelerator.unwrap_model(self.network)
        self.ema.store(network.parameters())
        self.ema.copy_to(network.parameters())
        pipeline = DDIMPipeline(network.eval(), DDIMScheduler.from_config(self.scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        with self.accelerator.autocast():
            images = pipeline(num_images, num_inference_steps=num_steps, output_type="np", return_dict=False)[0]
        self.ema.restore(network.parameters())
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1

    @override
    def denoiser(self) -> Any:
        from lit_ddpm import BetaSchedule, Denoiser, EpsParametrization  # not at the start-up of the library
        from lit_ddpm.nn import DiffusersUNet

        network = copy.deepcopy(self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)).eval()
        self.ema.copy_to(network.parameters())
        schedule = BetaSchedule(self.scheduler.betas.double())
        return Denoiser(DiffusersUNet.from_unet(network), schedule, EpsParametrization(), clip=True)


class _Folder(Dataset[Tensor]):
    """The images of a folder, transformed as in the guide."""

    def __init__(self, setting: Setting) -> None:
        self.paths = sorted(Path(setting.folder).glob("**/*.png"))
        self.mode = {1: "L", 3: "RGB"}[setting.channels]
        fit = [transforms.Resize(setting.image_size), transforms.CenterCrop(setting.image_size)]
        self.transform = transforms.Compose([*fit, transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.open(self.paths[index]).convert(self.mode))
        return image
