"""Work that the processes share: each does every so-manyth piece, and all get all results in order."""

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from lightning import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from lit_ddpm.module import DDPM
from lit_ddpm.sampler import Sampler

Result = TypeVar("Result")


def gather(trainer: Trainer, mine: Result) -> list[Result]:
    """What each process holds, in the order of their ranks, on every process."""
    everyones = [mine] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(everyones, mine)
    return everyones


def gather_in_turn(trainer: Trainer, mine: list[Result]) -> list[Result]:
    """All results in their order, on every process, if piece number i was done by process ``i % world_size``."""
    shares = gather(trainer, mine)
    return [share[turn] for turn in range(len(shares[0])) for share in shares if turn < len(share)]


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
