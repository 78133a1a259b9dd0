"""What a training step costs beyond its network: ``python -m benchmarks.overhead``.

Times the digits' training step three ways in turn, for some rounds: the bare network, loss, backward pass and
optimizer; the same through `DDPM` and Lightning with the data module and all logging; and that with `EMA`. Prints
medians and their ratios to the bare step.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import lightning
import torch
from lightning import Callback

from lit_ddpm import DDPM, X0MSE, KLWeighting, LogSNRSchedule, StratifiedTimesteps, UNet, VParametrization
from lit_ddpm.callbacks import EMA
from lit_ddpm.data import DigitsDataModule
from lit_ddpm.run_directory import RunLogger


def make_module() -> DDPM:
    """The model of ``configs/digits.yaml``."""
    return DDPM(
        network=UNet(width=32, dropout=0.05, fourier_features=[3, 4]),
        schedule=LogSNRSchedule(min=-6, max=8, num_steps=256),
        parametrization=VParametrization(),
        objective=X0MSE(KLWeighting()),
        timesteps=StratifiedTimesteps(),
        optimizer=lambda params: torch.optim.AdamW(params, lr=2e-3),
    )


def bare(batch_size: int, steps: int) -> list[float]:
    """Seconds a step of the network alone: forward, a mean squared error, backward, clipping, optimizer."""
    network = make_module().denoiser.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    x, t = torch.randn(batch_size, 1, 8, 8), torch.randint(1, 257, (batch_size,))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = (network(x, t) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
    return times


class Clock(Callback):
    """Seconds from the end of one step to the end of the next, data included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: object) -> None:
        """Notes the time."""
        self.ends.append(time.perf_counter())


def with_lightning(batch_size: int, steps: int, callbacks: Callable[[], list[Callback]]) -> list[float]:
    """Seconds a step through the module, the data module, logging and `callbacks`."""
    clock, directory = Clock(), tempfile.mkdtemp()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=[*callbacks(), clock],
        logger=RunLogger(directory),
        log_every_n_steps=19,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(make_module(), DigitsDataModule(batch_size=batch_size))
    return [b - a for a, b in zip(clock.ends[:-1], clock.ends[1:], strict=True)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=38)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    arms: dict[str, Callable[[], list[float]]] = {
        "network, backward, optimizer": lambda: bare(args.batch_size, args.steps),
        "through DDPM and Lightning": lambda: with_lightning(args.batch_size, args.steps, list),
        "and with EMA": lambda: with_lightning(args.batch_size, args.steps, lambda: [EMA(0.995)]),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name, run in arms.items():
            times[name].append(statistics.median(run()[3:]))  # the first steps warm caches
    first = times["network, backward, optimizer"]
    print(f"median seconds a step, {args.rounds} rounds of {args.steps} steps, batch {args.batch_size}")
    for name, values in times.items():
        ratios = sorted(value / base for value, base in zip(values, first, strict=True))
        middle = statistics.median(ratios)
        print(f"{name:<32}{statistics.median(values):9.4f}  ratio {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
