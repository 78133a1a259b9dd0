"""``python -m benchmarks NAME``: runs a benchmark of this folder; each can be started as ``benchmarks.NAME`` too."""

import runpy
import sys
from pathlib import Path

NAMES = [path.stem for path in sorted(Path(__file__).parent.glob("[!_]*.py")) if "ArgumentParser" in path.read_text()]


def main() -> None:
    """Runs the benchmark that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m benchmarks {{{','.join(NAMES)}}} [options]")
    runpy.run_module(f"benchmarks.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
