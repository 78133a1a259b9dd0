"""Samples drawn under a Trainer, split across its ranks."""

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

from lightning import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.training.distributed import gather_round_robin
from lit_ddpm.training.module import DDPM

Item = TypeVar("Item")
Result = TypeVar("Result")


def progress(trainer: Trainer, items: Iterable[Item], description: str) -> Iterable[Item]:
    """Iterates with a progress bar on rank 0, if the Trainer shows one."""
    hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
    bar: Iterable[Item] = tqdm(items, description, leave=False, disable=hidden)
    return bar


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Returns whether the Trainer runs everything once, with as little work as possible."""
    return bool(getattr(trainer, "fast_dev_run", False))


def shortened(trainer: Trainer, sampler: Sampler) -> Sampler:
    """Returns the sampler, or in a ``fast_dev_run`` a copy with two steps and small chunks."""
    if is_fast_dev_run(trainer):
        sampler = copy.copy(sampler)
        sampler.num_steps, sampler.chunk_size = min(2, sampler.num_steps or 2), min(4, sampler.chunk_size)
    return sampler


def draw(
    trainer: Trainer,
    module: DDPM,
    num_images: int,
    seed: int,
    sampler: Sampler,
    transform: Callable[[Tensor], Result],
    description: str,
) -> list[Result]:
    """Draws images of a seed in the Trainer's precision, the sampler's chunks in turn on each rank.

    Returns the results of `transform` for the chunks ``[B, C, H, W]``, in order, on every rank.
    """
    chunk_starts = range(0, num_images, sampler.chunk_size)[trainer.global_rank :: trainer.world_size]
    results = []
    for start in progress(trainer, chunk_starts, description):
        with trainer.precision_plugin.forward_context():
            images = module.sample(min(sampler.chunk_size, num_images - start), seed, start, sampler=sampler)
        results.append(transform(images))
    return gather_round_robin(trainer, results)
