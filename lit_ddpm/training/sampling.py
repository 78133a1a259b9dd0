"""Samples drawn under a Trainer, split across its ranks."""

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

from lightning import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.training.distributed import gather_in_turn
from lit_ddpm.training.module import DDPM

Result = TypeVar("Result")


def progress(trainer: Trainer, pieces: Iterable[Result], description: str) -> Iterable[Result]:
    """The pieces, with a progress bar on the first process where the Trainer shows one."""
    hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
    bar: Iterable[Result] = tqdm(pieces, description, leave=False, disable=hidden)
    return bar


def is_quick(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, in which everything happens once and hardly any of it."""
    return bool(getattr(trainer, "fast_dev_run", False))


def sampler_for(trainer: Trainer, sampler: Sampler) -> Sampler:
    """The sampler itself, or in a ``fast_dev_run`` a copy of it that makes a few images in two steps."""
    if is_quick(trainer):
        sampler = copy.copy(sampler)
        sampler.num_steps, sampler.chunk_size = min(2, sampler.num_steps or 2), min(4, sampler.chunk_size)
    return sampler


def draw(
    trainer: Trainer,
    module: DDPM,
    num_images: int,
    seed: int,
    sampler: Sampler,
    make: Callable[[Tensor], Result],
    description: str,
) -> list[Result]:
    """Draws images of a seed in the precision of the Trainer; whole chunks of the sampler are dealt to the processes.

    Returns:
        What `make` does of each chunk ``[B, C, H, W]``, in order, on every process.
    """
    firsts = range(0, num_images, sampler.chunk_size)[trainer.global_rank :: trainer.world_size]
    results = []
    for first in progress(trainer, firsts, description):
        with trainer.precision_plugin.forward_context():
            images = module.sample(min(sampler.chunk_size, num_images - first), seed, first, sampler=sampler)
        results.append(make(images))
    return gather_in_turn(trainer, results)
