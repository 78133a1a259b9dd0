"""The common interface of the libraries, and the settings of a training."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.common.clock import now, seconds

if TYPE_CHECKING:
    from lit_ddpm import Denoiser

PRECISIONS = ("32-true", "bf16-mixed")


def channels_last(precision: str) -> bool:
    """Returns whether the channels-last layout is the faster one without compilation; see ``ladder`` and ``gpu``."""
    return precision == "32-true" and not torch.cuda.is_available()


@dataclass(frozen=True)
class Setting:
    """Settings of a training.

    Attributes:
        folder: The folder of the images, PNG files.
        image_size: Their height and width; larger ones are cropped to it.
        channels: 1 or 3.
        width: Channels of the network at full resolution.
        batch_size: Images in a training step.
        precision: One of `PRECISIONS`.
        compile: Compile the network, for lit_ddpm and diffusers; the settings below apply to lit_ddpm alone.
        cuda_graphs: Replay CUDA graphs of the compiled network.
        channels_last: Lay images out channels last.
        seed: The seed of lit_ddpm; the others take the state of torch's generator.
        disabled: Optimizations to disable: ``"memory"`` (images in memory), ``"fused"`` (optimizer), ``"foreach"``
            (update of the averages), ``"sdpa"`` (attention), ``"guard"`` (the check of the gradients).
        adaptive: Draw timesteps by `AdaptiveTimesteps`, which read the losses of every step; for lit_ddpm alone.
        num_workers: Processes that read the images of diffusers; the images of lit_ddpm are in memory.
        clock_every: Steps between readings of the clock, which wait for the GPU; for all libraries.
    """

    folder: str
    image_size: int = 32
    channels: int = 3
    width: int = 32
    batch_size: int = 16
    precision: str = "32-true"
    compile: bool = False
    cuda_graphs: bool = False
    channels_last: bool = True
    seed: int = 0
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

    @abstractmethod
    def run(self, timer: "StepTimer") -> None:
        """Trains until the timer ends the training."""

    @abstractmethod
    def sample(self, num_images: int, num_steps: int) -> Tensor:
        """Samples images in [-1, 1], ``[B, C, H, W]``, by DDIM with the averaged weights."""

    @abstractmethod
    def denoiser(self) -> "Denoiser":
        """Returns a copy of the averaged model, during a training or after it, for the variational bound."""

    def train(self, num_steps: int) -> list[float]:
        """Trains for a number of steps.

        Returns:
            The seconds of each step but the first, whose beginning is unknown; of a step in each `Setting.clock_every`.
        """
        timer = StepTimer(num_steps, self.setting.clock_every)
        self.run(timer)
        return timer.durations()

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
        clock_every: Steps between readings of the clock.
    """

    def __init__(self, num_steps: int, clock_every: int = 1) -> None:
        self.num_steps, self.clock_every = num_steps, clock_every
        self.times: list[float] = []
        self.count = 0

    def step(self) -> bool:
        """Records the end of a step and returns whether training should stop."""
        if self.count % self.clock_every == 0:
            self.times.append(now())
        self.count += 1
        return self.count >= self.num_steps

    def durations(self) -> list[float]:
        """Returns the mean seconds of a step between two readings of the clock."""
        return [(after - before) / self.clock_every for before, after in pairwise(self.times)]


class Budget(StepTimer):
    """Ends a training after some CPU time of its process, and measures the model at marks before, off the clock.

    CPU time does not depend on other processes of the machine; worker processes that load data are not counted.

    Args:
        marks: CPU seconds since the timer was made; the training ends at the last.
        measure: Called at each mark, with the mark and the number of steps.
    """

    def __init__(self, marks: Sequence[float], measure: Callable[[float, int], None]) -> None:
        super().__init__(10**9)
        self.marks, self.measure = list(marks), measure
        self._start = time.process_time()

    def used(self) -> float:
        """Returns the CPU seconds so far, without measurements."""
        return time.process_time() - self._start

    @override
    def step(self) -> bool:
        self.count += 1
        while self.marks and self.used() >= self.marks[0]:
            before = time.process_time()
            self.measure(self.marks.pop(0), self.count)
            self._start += time.process_time() - before
        return not self.marks
