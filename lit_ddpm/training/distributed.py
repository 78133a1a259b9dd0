"""Weights that the processes share out among themselves: fully sharded data parallelism (FSDP2)."""

from typing import TypeVar

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

SHARDED = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
"""Strategies that give each process a share of the weights."""


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Gives each process of a mesh its share of every weight, layer by layer.

    The layers are the members of the network's module lists, which are gathered one after another as they are called;
    what is in no list is gathered once a step.
    """
    members = [member for module in network.modules() if isinstance(module, nn.ModuleList) for member in module]
    layers = [member for member in members if not isinstance(member, nn.ModuleList)]
    for module in [*reversed(layers), network]:  # the inner ones first
        if not isinstance(module, FSDPModule):
            fully_shard(module, mesh=mesh)


def hold_whole(network: nn.Module, whole: bool) -> None:
    """Gathers all weights of a sharded network and keeps them, or goes back to a share of them.

    A call of a sharded network waits for all processes. Evaluation and sampling give each process its own number of
    calls, and so hold the whole network, which without gradients and optimizer takes a quarter of the memory.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(not whole, recurse=False)
            module.unshard() if whole else module.reshard()


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
