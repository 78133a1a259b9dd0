"""The configurations that the package ships, by name."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

import lit_ddpm
from lit_ddpm._internal.checks import InputError

PACKAGE = Path(lit_ddpm.__file__).parent
FOLDER = next((folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()), PACKAGE)
"""The folder of the configurations: within an installed package, next to it in the repository."""

KINDS = {
    ".": "data and model",
    "trainer": "training, added to one of these",
    "logger": "loggers",
    "variants": "for compare",
}
"""The folders of the configurations that have a name, with their headings in the list."""


def shipped_configs(*kinds: str) -> dict[str, Path]:
    """Returns the files of some folders, or of all, by name, such as ``digits`` or ``bf16``."""
    return {path.stem: path for kind in kinds or KINDS for path in sorted((FOLDER / kind).glob("*.yaml"))}


def find_config(name: str | Path, setting: str = "config") -> Path:
    """Returns a file by its path, or a shipped configuration by its name; a file wins.

    Raises:
        ValueError: If there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(name) not in shipped:
        near = difflib.get_close_matches(path.stem, shipped, cutoff=0.5) or shipped
        raise InputError(f"{setting} = {name} is neither a file nor a shipped configuration: {', '.join(near)}.")
    return shipped[str(name)]


def run_configs(args: Sequence[str]) -> None:
    """Runs the command ``configs``: prints the names with a line each, or one configuration."""
    parser = argparse.ArgumentParser("lit-ddpm configs", description="Lists the shipped configurations, or prints one.")
    parser.add_argument("name", nargs="?", help="the configuration to print, to start your own from")
    chosen = parser.parse_args(args).name
    if chosen is not None:
        print(find_config(chosen, "name").read_text().rstrip())
        return
    for kind, heading in KINDS.items():
        print(f"{heading}:")
        for name, path in shipped_configs(kind).items():
            first_line, *_ = path.read_text().splitlines()
            print(f"  {name:<22} {first_line.removeprefix('# ')}")
