"""Wheels, and virtual environments with them; made without the network."""

import os
import subprocess
import sys
import venv
from pathlib import Path


def run_isolated(*command, timeout=300, **kwargs) -> str:
    """Runs a command without the paths and options of this suite, and returns its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout, env=environment, **kwargs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(project: Path, folder: Path) -> Path:
    """Builds the wheel of a project with the build backend of this environment."""
    run_isolated(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment_with(folder: Path, *wheels: Path) -> Path:
    """Makes a virtual environment with some wheels, and returns its Python.

    The other packages are those of this environment.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run_isolated(*pip, "install", "--quiet", "--no-deps", "--no-index", *wheels)
    (own,) = (folder / "lib").glob("*/site-packages")
    installed = next(path for path in sys.path if path.endswith("site-packages"))
    (own / "dependencies.pth").write_text(installed + "\n")
    return python
