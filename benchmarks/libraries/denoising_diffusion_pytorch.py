"""`denoising-diffusion-pytorch`: `Unet`, `GaussianDiffusion` and its `Trainer`."""

import contextlib
import copy
import io
import tempfile
from typing import Any

from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
from torch import Tensor
from typing_extensions import override

from benchmarks.libraries.base import Library, Setting, StepTimer

README = {"train_lr": 8e-5, "gradient_accumulate_every": 2, "ema_decay": 0.995}
"""The training of the README."""


class DenoisingDiffusionPytorch(Library):
    """A `Unet`: the nearest to the one of `LitDDPM`, unless other arguments are given."""

    def __init__(
        self, setting: Setting, network: dict[str, Any] | None = None, training: dict[str, Any] | None = None
    ) -> None:
        super().__init__(setting)
        nearest = {"dim_mults": (1, 2, 2, 2), "full_attn": (False, True, False, False)}
        self.network = Unet(**{"dim": setting.width, "channels": setting.channels} | (network or nearest))
        self._results = tempfile.TemporaryDirectory()
        self.trainer = Trainer(
            GaussianDiffusion(self.network, image_size=setting.image_size, timesteps=1000),
            setting.folder,
            train_batch_size=setting.batch_size,
            results_folder=self._results.name,
            calculate_fid=False,
            augment_horizontal_flip=False,
            save_and_sample_every=10**9,
            amp=setting.precision == "bf16-mixed",
            mixed_precision_type="bf16",
            **(training or {}),
        )

    @override
    def run(self, timer: StepTimer) -> None:
        trainer, update = self.trainer, self.trainer.ema.update

        def update_and_record() -> None:
            update()
            if timer.step():
                trainer.train_num_steps = 0  # ends the loop of Trainer.train

        trainer.train_num_steps = 10**9
        trainer.ema.update = update_and_record
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train()
        trainer.ema.update = update

    @override
    def sample(self, num_images: int, num_steps: int) -> Tensor:
        averaged = self.trainer.ema.ema_model.eval()
        averaged.sampling_timesteps, averaged.is_ddim_sampling = num_steps, True
        with contextlib.redirect_stderr(io.StringIO()), self.trainer.accelerator.autocast():
            images: Tensor = averaged.sample(num_images)
        return images * 2 - 1

    @override
    def denoiser(self) -> Any:
        from lit_ddpm import BetaSchedule, Denoiser, VParametrization  # not at the start-up of the library
        from lit_ddpm.nn import NetworkAdapter

        averaged = copy.deepcopy(self.trainer.ema.ema_model).eval()
        network, schedule = NetworkAdapter(averaged.model, time_offset=-1), BetaSchedule(averaged.betas.double())
        return Denoiser(network, schedule, VParametrization(), clip=True)
