"""Runs the examples of docs/data.md and docs/conditions.md, and writes the pictures of their samples.

Each Python block is a program that trains into ``runs/NAME``. Its last sample grid becomes ``docs/data/NAME.png``.
Prints the seconds of each program.
"""

import os
import re
import runpy
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile

from benchmarks.common.clock import now
from benchmarks.common.report import table

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (DOCS / "data.md", DOCS / "conditions.md")
OPTIONS = {
    "--names": {"nargs": "*", "help": "the examples, such as waves; all if none is given"},
    "--output_dir": {"type": Path, "default": DOCS / "data", "help": "the folder of the pictures"},
}


def examples() -> dict[str, str]:
    """Returns the programs of the pages by the name of their run."""
    blocks = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    return {found[1]: block for block in blocks if (found := re.search(r'"default_root_dir": "runs/(\w+)"', block))}


@contextmanager
def temporary_directory() -> Iterator[None]:
    """Runs a block in an empty working directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def main(args: Namespace) -> dict[str, float]:
    """Runs the programs one after another."""
    seconds = {}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    output_dir = args.output_dir.resolve()
    for name, program in examples().items():
        if args.names and name not in args.names:
            continue
        with temporary_directory():
            Path("example.py").write_text(program)
            start = now()
            runpy.run_path("example.py")
            seconds[name] = now() - start
            *_, grid = sorted(Path("runs").rglob("step_*.png"))
            copyfile(grid, output_dir / f"{name}.png")
    print(table(["", "seconds"], [[name, f"{value:.0f}"] for name, value in seconds.items()]))
    return seconds
