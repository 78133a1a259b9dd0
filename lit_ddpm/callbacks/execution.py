"""How a network is executed: compiled, or in channels-last memory. Neither changes the model."""

import torch
from lightning import LightningModule, Trainer
from typing_extensions import override

from lit_ddpm.callbacks.callback import DDPMCallback
from lit_ddpm.training.cost import is_compiled


class Compile(DDPMCallback):
    """Compiles the network with `torch.compile`: a slow first step, then faster ones on a GPU."""

    def __init__(self) -> None:
        super().__init__()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network = self.ddpm(pl_module).denoiser.network
        if not is_compiled(network):  # by an earlier command of this process
            network.compile()


class ChannelsLast(DDPMCallback):
    """Stores the weights in channels-last memory format, which speeds up convolutions."""

    def __init__(self) -> None:
        super().__init__()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network = self.ddpm(pl_module).denoiser.network
        volumes = any(weight.ndim == 5 for weight in network.parameters())
        network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
