"""Weights that the processes share out among themselves: fully sharded data parallelism (FSDP2)."""

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
