"""``python -m benchmarks NAME``: runs a benchmark of this folder; each can be started as ``benchmarks.NAME`` too."""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Runs the benchmark that the first argument names."""
    paths = sorted(Path(__file__).parent.glob("[!_]*.py"))
    names = [path.stem for path in paths if "ArgumentParser" in path.read_text()]
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m benchmarks {{{','.join(names)}}} [options]")
    runpy.run_module(f"benchmarks.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
