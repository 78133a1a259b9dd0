"""The code blocks of the documentation, and how its commands are run in seconds."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat

from helpers.commands import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").glob("*.ipynb"))]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block of a page."""

    language: str
    title: str  # a file name, or what the block needs, such as "needs a GPU"
    text: str

    @property
    def runs_here(self) -> bool:
        """Whether it needs neither a GPU nor the network."""
        return not self.title.startswith("needs")


def text_of(page: Path) -> str:
    """Returns the Markdown of a page; of a notebook, that of its text cells."""
    if page.suffix == ".md":
        return page.read_text()
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def blocks(text: str) -> list[Block]:
    """Returns the code blocks of a Markdown text."""
    return [Block(*match.groups(default="")) for match in FENCE.finditer(text)]


def commands(block: Block) -> Iterator[list[str]]:
    """Yields the commands of a shell block as lists of arguments, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    for command in (part for line in lines for part in line.split(" && ")):
        if arguments := shlex.split(command, comments=True):
            yield arguments
