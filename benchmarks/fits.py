"""Short fits by the command, as a user starts them, and what `Performance` logged of them."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


def fit(config: dict[str, Any], file: Path) -> dict[str, list[float]]:
    """Writes a configuration to a file, runs ``fit`` with it, and returns the values of each logged ``perf/`` key."""
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lit_ddpm", "fit", "--config", str(file)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {finished.returncode}: {finished.stderr[-2000:]}")
    with (Path(config["trainer"]["default_root_dir"]) / "metrics.csv").open(newline="") as log:
        rows = list(csv.DictReader(log))
    keys = [key for key in rows[0] if key.startswith("perf/")]
    return {key: [float(row[key]) for row in rows if row[key]] for key in keys}
