"""Random numbers as a function of a key, so that results do not depend on batch size, ranks or history."""

import hashlib
import os

import torch


def key_to_seed(*key: int | str) -> int:
    """Returns a 63-bit seed for a key such as ``("train", seed, epoch, batch, rank)``; equal keys give equal seeds."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """Returns a private CPU generator; equal keys give equal numbers on every machine."""
    return torch.Generator().manual_seed(key_to_seed(*key))


def image_generators(purpose: str, seed: int, index: torch.Tensor | None, count: int) -> list[torch.Generator]:
    """Returns a generator for each of `count` images by their `index` in a dataset, counted from 0 if None.

    Raises:
        ValueError: If there is not one index for each image.
    """
    indices = range(count) if index is None else [int(i) for i in index]
    if len(indices) != count:
        raise ValueError(f"index must have one number for each image, {count}, not {len(indices)}.")
    return [keyed_generator(purpose, seed, i) for i in indices]


def reseed(device: torch.device, *key: int | str) -> None:
    """Seeds the global generators of the CPU and of `device`; ``torch.manual_seed`` would ask every backend, slowly."""
    torch.default_generator.manual_seed(key_to_seed(*key))
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key_to_seed(*key))


def training_seed() -> int:
    """Returns the seed passed to Lightning's ``seed_everything``, or 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
