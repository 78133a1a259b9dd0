"""Samples: which ones to draw, and drawing them on all ranks of a Trainer."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import rebuilt
from lit_ddpm.data.protocols import HasHeldOut
from lit_ddpm.diffusion.network import NetworkSpec
from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.training.distributed import gather_results, interleave

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM
    from lit_ddpm.training.slots import Slots

Item = TypeVar("Item")
Result = TypeVar("Result")


class SampleChunk(NamedTuple):
    """Images of a seed that are drawn at once; a batch of ``predict``."""

    seed: int
    first_index: int
    num_images: int

    @property
    def indices(self) -> range:
        """The indices of the images."""
        return range(self.first_index, self.first_index + self.num_images)

    @classmethod
    def split(cls, sampler: Sampler, num_images: int, seed: int) -> list["SampleChunk"]:
        """Returns the images 0 to ``num_images - 1`` of a seed, in the chunks of a sampler."""
        size = sampler.chunk_size
        return [cls(seed, start, min(size, num_images - start)) for start in range(0, num_images, size)]


def chunk_loader(chunks: Sequence[SampleChunk]) -> DataLoader[SampleChunk]:
    """Returns a loader of chunks, for ``predict_dataloader``."""
    return DataLoader(cast(Dataset[SampleChunk], chunks), batch_size=1, collate_fn=_only_item)


def _only_item(batch: Sequence[Any]) -> Any:
    return batch[0]


def expand_conditions(cond: dict[str, Any], num_images: int, network: NetworkSpec) -> dict[str, Any]:
    """Returns keyword arguments of a network with a label and a condition for each image.

    A label is an integer for all images, or an integer for each; a condition is ``[num_images, C', ...]``, or
    ``[1, C', ...]`` for all.

    Raises:
        ValueError: If a label is out of range, or a condition is missing or has another shape.
    """
    cond = dict(cond)
    if "label" in cond and network.num_classes is not None:
        labels, most = torch.as_tensor(cond["label"]), network.num_classes
        if labels.ndim > 1 or labels.numel() not in (1, num_images):
            raise ValueError(
                f"label has shape {list(labels.shape)}: it must be an integer or have {num_images} of them."
            )
        if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) > most:
            raise ValueError(f"label = {labels.tolist()} must be 0 to {most - 1}, or {most} for no label.")
        cond["label"] = labels.long().expand(num_images)
    if (channels := network.cond_channels) is not None:
        values: Tensor | None = cond.get("cond")
        shape = None if values is None else list(values.shape)
        if values is None or len(values) not in (1, num_images) or values.shape[1:2] != (channels,):
            raise InputError(
                f"cond is {shape or 'missing'}: a network with cond_channels = {channels} draws {num_images} images "
                f"under conditions [{num_images}, {channels}, ...], or [1, {channels}, ...] for all of them."
            )
        cond["cond"] = values.expand(num_images, *[-1] * (values.ndim - 1))
    return cond


class HeldOut:
    """The images of a held-out split with their conditions, by index and the same on every rank.

    They are read when they are needed, and kept. Indices past the end of the split start over.
    """

    def __init__(self, module: "Slots", data: HasHeldOut, split: Literal["val", "test"]) -> None:
        self.name = f"{split} split of {type(data).__name__}"
        self._batches = (module.unpack_batch(batch) for batch in data.held_out_dataloader(split))
        self._x_0 = torch.empty(0)
        self._cond: dict[str, Tensor] = {}

    def __call__(self, index: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Returns x_0 ``[B, C, ...]`` as the network sees it, and its keyword arguments, for an index ``[B]``."""
        while len(self._x_0) <= int(index.max()) and (batch := next(self._batches, None)) is not None:
            x_0, cond = batch
            self._x_0 = torch.cat([self._x_0, x_0])
            self._cond = {key: torch.cat([self._cond.get(key, x[:0]), x]) for key, x in cond.items()}
        rows = index % len(self._x_0)
        return self._x_0[rows], {key: x[rows] for key, x in self._cond.items()}

    def __deepcopy__(self, memo: object) -> "HeldOut":
        """Returns the object itself: a copy of a module, such as an average, draws under the same conditions."""
        return self


def progress(trainer: Trainer, items: Iterable[Item], description: str) -> Iterable[Item]:
    """Iterates with a progress bar on rank 0, if the Trainer shows one."""
    hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
    bar: Iterable[Item] = tqdm(items, description, leave=False, disable=hidden)
    return bar


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Returns whether the Trainer runs everything once, with as little work as possible."""
    return bool(getattr(trainer, "fast_dev_run", False))


def shortened(trainer: Trainer, sampler: Sampler) -> Sampler:
    """Returns the sampler, or in a ``fast_dev_run`` one with two steps and small chunks."""
    if not is_fast_dev_run(trainer):
        return sampler
    return rebuilt(sampler, num_steps=min(2, sampler.num_steps or 2), chunk_size=min(4, sampler.chunk_size))


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
    chunks = SampleChunk.split(sampler, num_images, seed)[trainer.global_rank :: trainer.world_size]

    def draw_chunks() -> list[Result]:
        results = []
        for chunk in progress(trainer, chunks, description):
            with trainer.precision_plugin.forward_context():
                images = module.sample(chunk.num_images, seed, chunk.first_index, sampler=sampler)
            results.append(transform(images))
        return results

    return interleave(gather_results(trainer, draw_chunks))
