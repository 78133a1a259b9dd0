"""The common interface of the libraries, and the settings of a training."""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.common.clock import now, seconds

if TYPE_CHECKING:
    from lit_ddpm import Denoiser

IMAGE_SIZE = 32
PRECISIONS = ("32-true", "bf16-mixed")


def channels_last(precision: str) -> bool:
    """Returns whether the channels-last layout is the faster one without compilation; see ``ladder`` and ``gpu``."""
    return precision == "32-true" and not torch.cuda.is_available()


@dataclass(frozen=True)
class Setting:
    """Settings of a training.

    Attributes:
        folder: The folder of the images, PNG files of 32x32 pixels or more.
        channels: 1 or 3.
        width: Channels of the network at full resolution.
        batch_size: Images in a training step.
        precision: One of `PRECISIONS`.
        compile: Compile the network, for lit_ddpm and diffusers; the settings below apply to lit_ddpm alone.
        cuda_graphs: Replay CUDA graphs of the compiled network.
        channels_last: Lay images out channels last.
        disabled: Optimizations to disable: ``"memory"`` (images in memory), ``"fused"`` (optimizer), ``"foreach"``
            (update of the averages), ``"sdpa"`` (attention), ``"guard"`` (the check of the gradients).
        adaptive: Draw timesteps by `AdaptiveTimesteps`, which read the losses of every step; for lit_ddpm alone.
        num_workers: Processes that read the images of diffusers; the images of lit_ddpm are in memory.
        clock_every: Steps between readings of the clock, which wait for the GPU; for all libraries.
    """

    folder: str
    channels: int = 3
    width: int = 32
    batch_size: int = 16
    precision: str = "32-true"
    compile: bool = False
    cuda_graphs: bool = False
    channels_last: bool = True
    disabled: Sequence[str] = ()
    adaptive: bool = False
    num_workers: int = 0
    clock_every: int = 1


class Library(ABC):
    """A library with a model to train and to sample from.

    Attributes:
        network: The trained network.
    """

    network: nn.Module

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @classmethod
    @abstractmethod
    def with_documented_defaults(cls, folder: str) -> "Library":
        """Makes the model that the library's documentation trains, for gray 32x32 images in bfloat16."""

    @abstractmethod
    def train(self, num_steps: int, max_seconds: float = float("inf")) -> list[float]:
        """Trains until a number of steps or seconds is reached.

        Returns:
            The seconds of each step but the first, whose beginning is unknown; of a step in each `Setting.clock_every`.
        """

    @abstractmethod
    def sample(self, num_images: int, num_steps: int) -> Tensor:
        """Samples images in [-1, 1], ``[B, C, H, W]``, by DDIM with the averaged weights."""

    @abstractmethod
    def denoiser(self) -> "Denoiser":
        """Returns the averaged model, for the variational bound; training cannot continue after it."""

    def num_parameters(self) -> int:
        """Counts the network's parameters."""
        return sum(weight.numel() for weight in self.network.parameters())

    def training(self, num_steps: int) -> float:
        """Trains and returns the median seconds of a training step."""
        return statistics.median(self.train(num_steps)[1:])

    def sampling(self, num_images: int, num_steps: int) -> float:
        """Samples a batch and returns the seconds of a reverse step."""
        batches: list[Tensor] = []
        spent = seconds(lambda: batches.append(self.sample(num_images, num_steps)))
        if len(batches[0]) != num_images or not bool(torch.isfinite(batches[0]).all()):
            raise RuntimeError(
                f"{type(self).__name__} sampled {len(batches[0])} images, or values that are not finite."
            )
        return spent / num_steps


class StepTimer:
    """Times at which training steps end.

    Args:
        num_steps: The number of steps after which training should stop.
        max_seconds: The seconds since the end of the first step after which training should stop.
        clock_every: Steps between readings of the clock.
    """

    def __init__(self, num_steps: int, max_seconds: float, clock_every: int = 1) -> None:
        self.num_steps, self.max_seconds, self.clock_every = num_steps, max_seconds, clock_every
        self.times: list[float] = []
        self._count = 0

    def step(self) -> bool:
        """Records the end of a step and returns whether training should stop."""
        if self._count % self.clock_every == 0:
            self.times.append(now())
        self._count += 1
        return self._count >= self.num_steps or self.times[-1] - self.times[0] >= self.max_seconds

    def durations(self) -> list[float]:
        """Returns the mean seconds of a step between two readings of the clock."""
        return [(after - before) / self.clock_every for before, after in pairwise(self.times)]
