"""Cost of watching a run: the seconds of each callback of ``configs/digits.yaml``, with an offline W&B run.

Sampling consists of network calls, which the user asked for. The column that counts is the time outside the network:
pictures, metrics, files and loggers. Its share is of the whole fit.
"""

import os
import tempfile
from argparse import Namespace
from collections import defaultdict
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch import nn
from typing_extensions import override

from benchmarks.common.clock import now
from benchmarks.common.fits import CONFIGS
from benchmarks.common.report import table
from lit_ddpm.cli.app import DDPMCLI

WATCHING = ("ELBOProfile", "Performance", "SampleGrid", "SampleMetrics")

OPTIONS = {
    "--epochs": {"type": int, "default": 80},
}


class NetworkProfiler(SimpleProfiler):
    """Lightning's profiler, with the seconds of each action and the part of them in the network's forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.in_network: dict[str, float] = defaultdict(float)
        self._network_seconds = 0.0
        self._starts: dict[str, tuple[float, float]] = {}

    def watch(self, network: nn.Module) -> None:
        """Counts the forward passes of a network."""
        network.register_forward_pre_hook(lambda *_: self._count(-now()))
        network.register_forward_hook(lambda *_: self._count(now()))

    def _count(self, seconds: float) -> None:
        self._network_seconds += seconds

    @override
    def start(self, action_name: str) -> None:
        self._starts[action_name] = now(), self._network_seconds

    @override
    def stop(self, action_name: str) -> None:
        start, network_seconds = self._starts.pop(action_name)
        self.seconds[action_name] += now() - start
        self.in_network[action_name] += self._network_seconds - network_seconds

    @override
    def summary(self) -> str:
        return ""  # Lightning would print it


class FitTimer(Callback):
    """Seconds of a fit; also connects the network to the `NetworkProfiler`."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = now()
        trainer.profiler.watch(pl_module.denoiser.network)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = now() - self._start


def main(args: Namespace) -> dict[str, Any]:
    """Fits and measures the callbacks."""
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory() as directory:
        command = [
            *("fit", "--config", str(CONFIGS / "digits.yaml")),
            *("--config", str(CONFIGS / "logger" / "wandb.yaml")),
            f"--trainer.default_root_dir={directory}",
            f"--trainer.max_epochs={args.epochs}",
            "--trainer.profiler=benchmarks.dashboards.NetworkProfiler",
            "--trainer.callbacks+=benchmarks.dashboards.FitTimer",
            "--trainer.enable_progress_bar=false",
        ]
        trainer = DDPMCLI(command).trainer
    profiler = trainer.profiler
    fit_seconds = next(callback.seconds for callback in trainer.callbacks if isinstance(callback, FitTimer))
    figures: dict[str, Any] = {"fit": fit_seconds}
    rows, outside = [], 0.0
    for name in WATCHING:
        actions = [action for action in profiler.seconds if action.startswith(f"[Callback]{name}.")]
        seconds, network = (sum(times[a] for a in actions) for times in (profiler.seconds, profiler.in_network))
        figures[name] = {"seconds": seconds, "network": network}
        outside += seconds - network
        cells = [f"{value:.2f}" for value in (seconds, network, seconds - network)]
        rows.append([name, *cells, f"{(seconds - network) / fit_seconds:.2%}"])
    rows.append(["total", "", "", f"{outside:.2f}", f"{outside / fit_seconds:.2%}"])
    print(table(["callback", "seconds", "in the network", "outside the network", "share of the fit"], rows))
    print(f"\nThe fit took {fit_seconds:.1f} s.")
    return figures
