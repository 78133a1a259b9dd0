"""Runs the notebooks of the documentation and keeps their outputs.

Progress bars and the standard error are not kept. Prints the seconds of each notebook.
"""

import os
import re
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from benchmarks.common.clock import now
from benchmarks.common.report import table

NOTEBOOKS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "docs").glob("*.ipynb"))}
OPTIONS = {
    "--names": {"nargs": "*", "choices": sorted(NOTEBOOKS), "help": "the notebooks; all if none is given"},
}


def run(path: Path, parameters: str | None = None) -> nbformat.NotebookNode:
    """Runs a notebook in a temporary directory and returns it with its outputs.

    Args:
        path: The notebook.
        parameters: The source of the cell with the tag ``parameters``; its own if None.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if parameters is not None and "parameters" in cell.metadata.get("tags", []):
            cell.source = parameters
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}})
        client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
        if cell.cell_type == "code":
            cell.outputs = list(without_progress(cell.outputs))
    return notebook


def without_progress(outputs: Iterable[nbformat.NotebookNode]) -> Iterator[nbformat.NotebookNode]:
    """Yields the outputs of a cell without progress bars and standard error; printed lines are joined."""
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    lines = [line for line in printed.split("\n") if not re.search(r"[\r\x1b]|it/s", line)]
    if text := "\n".join(lines).strip():
        yield nbformat.v4.new_output("stream", name="stdout", text=text + "\n")
    yield from (output for output in outputs if output.output_type != "stream")


def main(args: Namespace) -> dict[str, float]:
    """Runs the notebooks one after another."""
    seconds = {}
    for name in args.names or NOTEBOOKS:
        start = now()
        notebook = run(NOTEBOOKS[name])
        seconds[name] = now() - start
        nbformat.write(notebook, NOTEBOOKS[name])
    print(table(["notebook", "seconds"], [[name, f"{value:.0f}"] for name, value in seconds.items()]))
    return seconds
