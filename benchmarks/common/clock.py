"""The clock of the benchmarks: it waits for the GPU and measures contestants round-robin."""

import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

Measurement = TypeVar("Measurement")


def now() -> float:
    """Returns the time in seconds, once the GPU has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any]) -> float:
    """Times one call."""
    start = now()
    work()
    return now() - start


def in_turns(
    contestants: Mapping[str, Callable[[], Measurement]], rounds: int, warm_up: bool = False
) -> dict[str, list[Measurement]]:
    """Measures contestants round-robin, so that a change of the machine's speed affects all of them alike.

    Args:
        contestants: One measurement of each contestant, such as ``lambda: seconds(work)``.
        rounds: The number of measurements of each.
        warm_up: Discard a first additional round.

    Returns:
        The measurements of each contestant, one per round.
    """
    found: dict[str, list[Measurement]] = {name: [] for name in contestants}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name, measure in contestants.items():
            measurement = measure()
            if number > 0:
                found[name].append(measurement)
            print(f"{f'round {number} of {rounds}' if number else 'warm-up'}: {name}", file=sys.stderr, flush=True)
    return found


def synchronizations(work: Callable[[], Any]) -> Counter[str]:
    """Counts where the CPU waits for the GPU during a call, by ``file:line`` of Python; empty without a GPU."""
    if not torch.cuda.is_available():
        work()
        return Counter()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in found if "synchronizing CUDA operation" in str(warning.message)]
    return Counter("/".join(Path(wait.filename).parts[-2:]) + f":{wait.lineno}" for wait in waits)
