"""What a training step costs beyond its network: ``python -m benchmarks.overhead``.

Trains the model of ``configs/digits.yaml`` through Lightning with data module and logging, and times within each
step the network's forward pass, the backward pass, and clipping and optimizer. What is left is the cost of the module,
the logging, the data and Lightning. Prints medians over the steps, without and with `EMA`.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from typing import Any

import lightning
import torch
from lightning import Callback, LightningModule

from lit_ddpm import DDPM, X0MSE, KLWeighting, LogSNRSchedule, StratifiedTimesteps, UNet, VParametrization
from lit_ddpm.callbacks import EMA
from lit_ddpm.data import DigitsDataModule
from lit_ddpm.training.run_directory import RunLogger

WARM_UP = 5  # steps left out


class Clock(Callback):
    """Milliseconds of each part of each step."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.started: dict[str, float] = {}

    def start(self, part: str) -> None:
        """Notes the time at which `part` begins."""
        self.started[part] = time.perf_counter()

    def stop(self, part: str) -> None:
        """Adds the time since `part` began."""
        self.parts[part].append(1000 * (time.perf_counter() - self.started[part]))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:
        """Hooks into network and optimizer."""
        network = pl_module.denoiser.network
        network.register_forward_pre_hook(lambda *_: self.start("network forward"))
        network.register_forward_hook(lambda *_: self.stop("network forward"))
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.stop("clipping and optimizer"))

    def on_before_backward(self, *_: Any) -> None:
        """The backward pass begins."""
        self.start("backward")

    def on_after_backward(self, *_: Any) -> None:
        """The backward pass ends."""
        self.stop("backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Clipping and the optimizer's own work begin."""
        self.start("clipping and optimizer")

    def on_train_batch_end(self, *_: Any) -> None:
        """A step lasts from the end of one to the end of the next, data included."""
        if "step" in self.started:
            self.stop("step")
        self.start("step")


def measure(batch_size: int, epochs: int, callbacks: list[Callback]) -> dict[str, float]:
    """Median milliseconds of each part of a step."""
    clock = Clock()
    module = DDPM(
        network=UNet(width=32, dropout=0.05, fourier_features=[3, 4]),
        schedule=LogSNRSchedule(min=-6, max=8, num_steps=256),
        parametrization=VParametrization(),
        objective=X0MSE(KLWeighting()),
        timesteps=StratifiedTimesteps(),
        optimizer=lambda params: torch.optim.AdamW(params, lr=2e-3),
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=0.004,
        callbacks=[*callbacks, clock],
        logger=RunLogger(tempfile.mkdtemp()),
        log_every_n_steps=19,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DigitsDataModule(batch_size=batch_size))
    medians = {part: statistics.median(times[WARM_UP:]) for part, times in clock.parts.items()}
    named = [clock.parts[part][WARM_UP + 1 :] for part in clock.parts if part != "step"]
    rest = [step - sum(parts) for step, *parts in zip(clock.parts["step"][WARM_UP:], *named, strict=True)]
    return medians | {"everything else": statistics.median(rest)}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    measure(args.batch_size, 1, [])
    plain, averaged = measure(args.batch_size, args.epochs, []), measure(args.batch_size, args.epochs, [EMA(0.995)])
    print(f"median milliseconds a step, batch {args.batch_size}, {torch.get_num_threads()} threads")
    print(f"{'part':<24}{'ms':>9}{'share':>8}{'with EMA':>11}{'share':>8}")
    for part in ("network forward", "backward", "clipping and optimizer", "everything else", "step"):
        shares = [f"{times[part] / times['step']:8.1%}" for times in (plain, averaged)]
        print(f"{part:<24}{plain[part]:9.2f}{shares[0]}{averaged[part]:11.2f}{shares[1]}")


if __name__ == "__main__":
    main()
