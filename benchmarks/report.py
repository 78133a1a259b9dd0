"""The clock of the benchmarks, and tables of what they measured, as Markdown and JSON, with the machine named."""

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "diffusers", "denoising-diffusion-pytorch")


def machine() -> str:
    """The processor, its cores, and the versions of what was measured."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        device = f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    packages = []
    for name in PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{device}; Python {platform.python_version()}, {', '.join(packages)}"


def now() -> float:
    """Seconds on the clock, once the GPU has done what it was asked for, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """The median and, in brackets, the smallest and the largest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """How many times as long theirs takes as ours, round by round."""
    return spread([their / our for their, our in zip(theirs, ours, strict=True)], ".2f")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def save(path: str | None, results: Any) -> None:
    """Writes what was measured, and where, to a JSON file if there is to be one."""
    if path is not None:
        Path(path).write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
