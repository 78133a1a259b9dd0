"""Random numbers that are a function of a key, so that no result depends on batch size, processes or history."""

import hashlib
import os

import torch


def key_to_seed(*key: int | str) -> int:
    """A 63-bit seed for a key such as ``("train", seed, epoch, batch, rank)``; equal keys give equal seeds."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A private generator on the CPU that draws the same numbers for the same key on every machine."""
    return torch.Generator().manual_seed(key_to_seed(*key))


def reseed(device: torch.device, *key: int | str) -> None:
    """Sets the global streams of the CPU and of `device` to a key; ``torch.manual_seed`` asks every backend, slowly."""
    torch.default_generator.manual_seed(key_to_seed(*key))
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key_to_seed(*key))


def training_seed() -> int:
    """The seed that Lightning's ``seed_everything`` was called with, or 0 if it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
