"""The plan of a comparison: a file from which any process, on any machine, executes a run or collects the results."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch

import lit_ddpm
from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import atomic_write, write_json
from lit_ddpm.compare.runs import Run
from lit_ddpm.compare.variants import Variant
from lit_ddpm.training.run_directory import RunDirectory

FILE = "comparison.json"


def versions() -> dict[str, str]:
    """Returns the versions that the results of a comparison depend on."""
    return {
        "lit_ddpm": lit_ddpm.__version__,
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
    }


@dataclass(frozen=True)
class Plan:
    """The variants and seeds of a comparison."""

    directory: Path
    command: str  # the command that repeats the comparison
    variants: list[Variant]
    num_seeds: int
    audits: dict[str, str]  # the result of the audit by name of the variant, see `Audit`

    @property
    def runs(self) -> list[Run]:
        """The runs by their number: all variants of the first seed, then all of the next."""
        return [
            Run(variant, seed, RunDirectory(self.directory / variant.name / f"seed_{seed}"), self.directory.name)
            for seed in range(self.num_seeds)
            for variant in self.variants
        ]

    def save(self) -> None:
        """Writes ``comparison.json``, and ``commands.txt`` with a command for each run."""
        variants = [
            {
                "name": variant.name,
                "config": variant.config,
                "checkpoint": variant.checkpoint and str(variant.checkpoint),
            }
            for variant in self.variants
        ]
        content = {"command": self.command, "num_seeds": self.num_seeds, "audits": self.audits, "variants": variants}
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.directory / FILE, {"versions": versions(), **content})
        directory = shlex.quote(str(self.directory))
        commands = [f"lit-ddpm compare --output_dir {directory} --run {k}\n" for k in range(len(self.runs))]
        with atomic_write(self.directory / "commands.txt") as partial:
            partial.write_text("".join(commands))

    @classmethod
    def load(cls, directory: Path) -> "Plan":
        """Reads the plan of a directory.

        Raises:
            ValueError: If it has none, or one of other versions.
        """
        path = directory / FILE
        if not path.is_file():
            raise InputError(f"output_dir = {directory} has no comparison: write its plan with --prepare.")
        content = json.loads(path.read_text())
        prepared, here = content["versions"], versions()
        if different := [f"{name} {prepared[name]}, not {here[name]}" for name in here if prepared[name] != here[name]]:
            raise InputError(
                f"output_dir = {directory} was prepared with {', '.join(different)}: results of different versions are "
                "not compared. Use those versions, or another directory."
            )
        variants = [
            Variant(variant["name"], variant["config"], Path(variant["checkpoint"]) if variant["checkpoint"] else None)
            for variant in content["variants"]
        ]
        return cls(directory, content["command"], variants, content["num_seeds"], content["audits"])


def check_resumable(directory: Path) -> None:
    """Raises a ValueError if a directory has runs of other versions, or of a version without plans."""
    if (directory / FILE).is_file():
        Plan.load(directory)
    elif any(directory.glob(f"*/seed_*/{RunDirectory(directory).variant_config.name}")):
        raise InputError(f"{directory} has a comparison of an earlier version of lit_ddpm: set another directory.")
