"""What watching a run costs: seconds of each callback of ``configs/digits.yaml``, with an offline run of W&B.

python -m benchmarks.dashboards

Drawing samples is network calls, which are what the user asked for; the column that counts is the time beyond them:
pictures, metrics, files, loggers. Its share is of the whole fit.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler

from lit_ddpm.__main__ import main as lit_ddpm

WATCHING = ("ELBOProfile", "Performance", "SampleGrid", "SampleMetrics")
CONFIGS = Path(__file__).parent.parent / "configs"


class Clock(SimpleProfiler):
    """Lightning's profiler, which also knows how much of each action was spent in the network."""

    network = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, tuple[float, float]] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.in_network: dict[str, float] = defaultdict(float)

    def start(self, action_name: str) -> None:
        """See Lightning's Profiler."""
        self.began[action_name] = (time.perf_counter(), Clock.network)

    def stop(self, action_name: str) -> None:
        """See Lightning's Profiler."""
        start, network = self.began.pop(action_name)
        self.seconds[action_name] += time.perf_counter() - start
        self.in_network[action_name] += Clock.network - network

    def summary(self) -> str:
        """Nothing: `Report` prints."""
        return ""


class Report(Callback):
    """Times the network, and prints the table when the fit ends."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins."""
        self.began = time.perf_counter()
        network: Any = pl_module.denoiser.network  # type: ignore[union-attr]
        network.register_forward_pre_hook(self._enter)
        network.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self.entered = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        Clock.network += time.perf_counter() - self.entered

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints."""
        whole = time.perf_counter() - self.began
        clock: Any = trainer.profiler  # type: ignore[attr-defined]
        print(f"{'callback':<16}{'seconds':>9}{'in the network':>16}{'beyond it':>11}{'share of the fit':>18}")
        beyond = 0.0
        for name in WATCHING:
            actions = [action for action in clock.seconds if action.startswith(f"[Callback]{name}.")]
            seconds, network = (sum(t[action] for action in actions) for t in (clock.seconds, clock.in_network))
            beyond += seconds - network
            print(
                f"{name:<16}{seconds:9.2f}{network:16.2f}{seconds - network:11.2f}{(seconds - network) / whole:18.2%}"
            )
        print(f"{'together':<16}{'':>25}{beyond:11.2f}{beyond / whole:18.2%}\nof a fit of {whole:.1f} s")


def main() -> None:
    """Fits and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=80)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory() as directory:
        lit_ddpm(
            [
                *("fit", "--config", str(CONFIGS / "digits.yaml")),
                *("--config", str(CONFIGS / "logger" / "wandb.yaml")),
                f"--trainer.default_root_dir={directory}",
                f"--trainer.max_epochs={args.epochs}",
                "--trainer.profiler=benchmarks.dashboards.Clock",
                "--trainer.callbacks+=benchmarks.dashboards.Report",
                "--trainer.enable_progress_bar=false",
            ]
        )


if __name__ == "__main__":
    main()
