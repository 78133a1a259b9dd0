"""The words that the project does not use, in any text of the repository."""

import re

import pytest
from helpers import ROOT

BANNED = r"\b(programmes?|goes on|whatever|so-manyth|beside|hardly|(?<!there )is no (?!longer\b)[a-z]+)\b"
FOLDERS = (
    "lit_ddpm",
    "configs",
    "docs",
    "benchmarks",
    "examples",
    "tests",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
SUFFIXES = (".py", ".md", ".yaml", ".jinja")


def texts():
    for folder in FOLDERS:
        path = ROOT / folder
        yield from [path] if path.is_file() else (p for p in sorted(path.rglob("*")) if p.suffix in SUFFIXES)


def violations(text: str) -> list[str]:
    return [match[0] for match in re.finditer(BANNED, text, re.IGNORECASE)]


@pytest.mark.parametrize(
    "path", [p for p in texts() if p.name != "test_prose.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_banned_words(path):
    assert violations(path.read_text()) == []


def test_the_list_is_applied():
    assert violations("The programme goes on beside it; it is no checkpoint.") == [
        "programme",
        "goes on",
        "beside",
        "is no checkpoint",
    ]
    assert violations("The program resumes next to it; it is not a checkpoint and is no longer needed.") == []
