"""Tables of measurements in Markdown, and the machine that they were measured on."""

import logging
import os
import platform
import re
import statistics
import warnings
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "diffusers", "denoising-diffusion-pytorch")


def machine() -> str:
    """Returns the processor, its number of cores and the versions of the installed packages."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        name = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
        device = f"{name[1] if name else platform.machine()}, {os.cpu_count()} cores"
    installed = {distribution.name: distribution.version for distribution in distributions()}
    packages = [f"{name} {installed[name]}" for name in PACKAGES if name in installed]
    return f"{device}; Python {platform.python_version()}, {', '.join(packages)}"


def spread(values: Sequence[float], form: str = "") -> str:
    """Formats the median with the minimum and the maximum in brackets, by default with three significant digits."""
    parts = statistics.median(values), min(values), max(values)
    median, least, most = (f"{part:{form}}" if form else f"{float(f'{part:.3g}'):,g}" for part in parts)
    return f"{median} ({least} to {most})"


def ratios(values: Sequence[float], references: Sequence[float]) -> str:
    """Formats the ratios of measurements to those of a reference in the same round."""
    return spread([value / reference for value, reference in zip(values, references, strict=True)], ".2f")


def mean_and_deviation(values: Sequence[float], form: str = ".3f") -> str:
    """Formats the mean with the standard deviation, if there are several values."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a Markdown table."""
    from lit_ddpm._internal.tables import markdown_table  # not at the start-up of other libraries

    return markdown_table([header, *([str(cell) for cell in row] for row in rows)], left=len(header))


def silence() -> None:
    """Suppresses warnings, and log messages up to the level of warnings, in this process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
