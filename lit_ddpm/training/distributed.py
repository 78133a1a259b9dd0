"""Several ranks: gathered results, and sharded weights (FSDP2)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from typing_extensions import override

from lit_ddpm._internal.checks import InputError

Result = TypeVar("Result")

SHARDED = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
"""Strategies in which each rank has a shard of the weights."""


def gather_results(trainer: Trainer, compute: Callable[[], Result]) -> list[Result]:
    """Calls a function on every rank and returns the results of all ranks in order, on every rank.

    Raises:
        RuntimeError: On every rank, with the message of the first rank on which the function failed. Without it the
            other ranks would wait for that rank until a time-out.
    """
    result: Result | None = None
    error: Exception | None = None
    try:
        result = compute()
    except Exception as caught:
        error = caught
    share = (result, None if error is None else f"{type(error).__name__}: {error}")
    gathered = [share] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(gathered, share)
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(gathered):
        if message is not None:
            raise RuntimeError(f"rank {rank} failed: {message}")
    return [cast(Result, result) for result, _ in gathered]


def interleave(by_rank: list[list[Result]]) -> list[Result]:
    """Returns the results of all ranks in order, if rank ``i % world_size`` computed result i."""
    return [results[turn] for turn in range(len(by_rank[0])) for results in by_rank if turn < len(results)]


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the weights of a network over a device mesh, layer by layer.

    The layers are the members of the network's module lists, which are gathered one after another as they are called.
    The remaining weights are gathered once a step.

    Raises:
        ValueError: If torch is too old.
    """
    if not hasattr(FSDPModule, "set_reshard_after_forward"):
        raise InputError(f"sharded weights need torch 2.8 or later; this is {torch.__version__}.")
    network.to(memory_format=torch.contiguous_format)  # channels-last weights cannot be sharded
    members = [member for module in network.modules() if isinstance(module, nn.ModuleList) for member in module]
    layers = [member for member in members if not isinstance(member, nn.ModuleList)]
    for module in [*reversed(layers), network]:  # inner modules first
        if not isinstance(module, FSDPModule):
            fully_shard(module, mesh=mesh)


def gather_full_weights(network: nn.Module) -> None:
    """Gathers the weights of a sharded network and keeps them on every rank; other networks stay as they are."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def reshard(network: nn.Module) -> None:
    """Reduces the weights of a sharded network to the shard of each rank again."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


@contextmanager
def full_weights(trainer: Trainer, network: nn.Module) -> Iterator[None]:
    """Gives every rank the full weights of a network within a block; outside of training it has them."""
    if not trainer.training:
        yield
        return
    gather_full_weights(network)
    try:
        yield
    finally:
        reshard(network)


class GatherFullWeights(Callback):
    """Gives every rank the full weights of a sharded network for evaluation and sampling.

    A call of a sharded network waits for all ranks, but evaluation and sampling call it a different number of times on
    each. Without gradients and optimizer state the full network takes a quarter of the memory of training.
    """

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gather_full_weights(pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reshard(pl_module)

    on_test_start = on_predict_start = on_validation_start
