"""Samples: which ones to draw, and drawing them on all ranks of a Trainer."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lit_ddpm._internal.threads import evaluation_threads
from lit_ddpm.data.protocols import HasHeldOut
from lit_ddpm.diffusion.sampler import Sampler
from lit_ddpm.training.distributed import gather_results, interleave

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

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
    def split(cls, module: "DDPM", num_images: int, seed: int) -> list["SampleChunk"]:
        """Returns the images 0 to ``num_images - 1`` of a seed, in groups for the sampler of a module."""
        size = images_at_once(module, module.sampler)
        return [cls(seed, start, min(size, num_images - start)) for start in range(0, num_images, size)]


def images_at_once(module: "DDPM", sampler: Sampler) -> int:
    """Returns how many images to draw at once: a chunk of the sampler in each thread."""
    return sampler.chunk_size * evaluation_threads(module.denoiser.network)


def chunk_loader(chunks: Sequence[SampleChunk]) -> DataLoader[SampleChunk]:
    """Returns a loader of chunks, for ``predict_dataloader``."""
    return DataLoader(cast(Dataset[SampleChunk], chunks), batch_size=1, collate_fn=_only_item)


def _only_item(batch: Sequence[Any]) -> Any:
    return batch[0]


def as_labels(label: Any, num_images: int, num_classes: int) -> Tensor:
    """Returns a label for each image, int64 ``[num_images]``, from an integer or one integer for each.

    Raises:
        ValueError: If their number is another, or one is neither a class nor `num_classes`, which means "no label".
    """
    labels = torch.as_tensor(label)
    if labels.ndim > 1 or labels.numel() not in (1, num_images):
        raise ValueError(f"label has shape {list(labels.shape)}: it must be an integer or have {num_images} of them.")
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) > num_classes:
        raise ValueError(f"label = {labels.tolist()} must be 0 to {num_classes - 1}, or {num_classes} for no label.")
    return labels.long().expand(num_images)


def as_conditions(cond: Tensor | None, num_images: int, channels: int) -> Tensor:
    """Returns a condition for each image, ``[num_images, channels, ...]``, from as many or a single one for all.

    Raises:
        ValueError: If it is missing or has another shape.
    """
    shape = None if cond is None else list(cond.shape)
    if cond is None or len(cond) not in (1, num_images) or cond.shape[1:2] != (channels,):
        raise ValueError(
            f"cond is {shape or 'missing'}: a network with cond_channels = {channels} draws {num_images} images under "
            f"conditions [{num_images}, {channels}, ...], or [1, {channels}, ...] for all of them."
        )
    return cond.expand(num_images, *[-1] * (cond.ndim - 1))


def complete_cond(module: "DDPM", cond: dict[str, Any], num_images: int) -> dict[str, Any]:
    """Returns keyword arguments of the network with a label and a condition for each image, on its device."""
    cond = dict(cond)
    if "label" in cond and module.num_classes is not None:
        cond["label"] = as_labels(cond["label"], num_images, module.num_classes)
    if module.cond_channels is not None:
        cond["cond"] = as_conditions(cond.get("cond"), num_images, module.cond_channels)
    return {key: x.to(module.device) if isinstance(x, Tensor) else x for key, x in cond.items()}


class HeldOut:
    """The images of a held-out split with their conditions, by index and the same on every rank.

    They are read when they are needed, and kept. Indices past the end of the split start over.
    """

    def __init__(self, module: "DDPM", data: HasHeldOut, split: Literal["val", "test"]) -> None:
        self.name = f"{split} split of {type(data).__name__}"
        self._batches = (module.unpack_batch(batch) for batch in data.held_out_dataloader(split))
        self._x_0 = torch.empty(0)
        self._cond: dict[str, Tensor] = {}

    def __call__(self, first_index: int, num_images: int) -> tuple[Tensor, dict[str, Any]]:
        """Returns x_0 ``[num_images, C, ...]`` as the network sees it, and its keyword arguments, on the CPU."""
        for x_0, cond in self._batches:
            self._x_0 = torch.cat([self._x_0, x_0])
            self._cond = {key: torch.cat([self._cond.get(key, x[:0]), x]) for key, x in cond.items()}
            if len(self._x_0) >= first_index + num_images:
                break
        rows = torch.arange(first_index, first_index + num_images) % len(self._x_0)
        return self._x_0[rows], {key: x[rows] for key, x in self._cond.items()}

    def __deepcopy__(self, memo: object) -> "HeldOut":
        """Returns the object itself: a copy of a module, such as an average, draws under the same conditions."""
        return self


def held_out_cond(module: "DDPM", first_index: int, num_images: int) -> dict[str, Any]:
    """Returns the keyword arguments of `DDPM.sample` for a network with conditions; nothing for another."""
    if module.held_out is None:
        return {}
    index = torch.arange(first_index, first_index + num_images)
    return module.sample_cond(index, module.held_out(first_index, num_images)[1])


def drawing_cond(module: "DDPM", first_index: int, num_images: int) -> dict[str, Any]:
    """Returns all keyword arguments of the network for generated images."""
    if module.held_out is None:
        return module.sample_cond(torch.arange(first_index, first_index + num_images))
    return held_out_cond(module, first_index, num_images)


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
    at_once = images_at_once(module, sampler)
    starts = range(0, num_images, at_once)[trainer.global_rank :: trainer.world_size]

    def draw_chunks() -> list[Result]:
        results = []
        for start in progress(trainer, starts, description):
            with trainer.precision_plugin.forward_context():
                count = min(at_once, num_images - start)
                cond = held_out_cond(module, start, count)
                images = module.sample(count, seed, start, sampler=sampler, **cond)
            results += [transform(chunk) for chunk in torch.split(images, sampler.chunk_size)]
        return results

    return interleave(gather_results(trainer, draw_chunks))
