"""Samples: which ones to draw, and drawing them on all ranks of a Trainer."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.training.distributed import gather_results, interleave

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

Item = TypeVar("Item")
Result = TypeVar("Result")


class SampleChunk(NamedTuple):
    """Images of a seed that are drawn together; a batch of ``predict``."""

    seed: int
    first_index: int
    num_images: int

    @property
    def indices(self) -> range:
        """The indices of the images."""
        return range(self.first_index, self.first_index + self.num_images)

    @classmethod
    def split(cls, num_images: int, chunk_size: int, seed: int) -> list["SampleChunk"]:
        """Returns the chunks of the images 0 to ``num_images - 1`` of a seed."""
        starts = range(0, num_images, chunk_size)
        return [cls(seed, start, min(chunk_size, num_images - start)) for start in starts]


def chunk_loader(chunks: Sequence[SampleChunk]) -> DataLoader[SampleChunk]:
    """Returns a loader of chunks, for ``predict_dataloader``."""
    return DataLoader(cast(Dataset[SampleChunk], chunks), batch_size=1, collate_fn=_only_item)


def _only_item(batch: Sequence[Any]) -> Any:
    return batch[0]


def as_labels(label: Any, num_images: int, num_classes: int) -> Tensor:
    """Returns a label for each image, int64 ``[num_images]``, from an integer or one integer for each.

    Raises:
        ValueError: If their number is another, or one is not a class.
    """
    labels = torch.as_tensor(label)
    if labels.ndim > 1 or labels.numel() not in (1, num_images):
        raise ValueError(f"label has shape {list(labels.shape)}: it must be an integer or have {num_images} of them.")
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"label = {labels.tolist()} must be 0 to {num_classes - 1}.")
    return labels.long().expand(num_images)


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
    module: "DDPM",
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

    def draw_chunks() -> list[Result]:
        results = []
        for start in progress(trainer, chunk_starts, description):
            with trainer.precision_plugin.forward_context():
                images = module.sample(min(sampler.chunk_size, num_images - start), seed, start, sampler=sampler)
            results.append(transform(images))
        return results

    return interleave(gather_results(trainer, draw_chunks))
