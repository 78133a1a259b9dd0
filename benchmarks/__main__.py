"""The entry point ``python -m benchmarks NAME [options]``; without a name it lists the benchmarks.

A benchmark is a module of this folder with ``OPTIONS``, the keyword arguments of ``ArgumentParser.add_argument`` by
flag, and ``main(args)``, which measures, prints the tables and returns the figures. Its docstring describes it in
``--help``.
"""

import ast
import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

FILES = {path.stem: path for path in sorted(Path(__file__).parent.glob("[!_]*.py"))}


def summary(name: str) -> str:
    """Returns the first line of a benchmark's docstring, without importing the benchmark."""
    return (ast.get_docstring(ast.parse(FILES[name].read_text())) or "").partition("\n")[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark that the first argument names.

    Args:
        argv: The arguments, or None for those of the process.
    """
    name, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [options]\n")
        print("\n".join(f"{name:<18} {summary(name)}" for name in FILES))
        return
    if name not in FILES:
        sys.exit(f"python -m benchmarks: {name!r} is not a benchmark; choose from {', '.join(FILES)}.")
    benchmark = import_module(f"benchmarks.{name}")
    parser = ArgumentParser(f"python -m benchmarks {name}", formatter_class=RawDescriptionHelpFormatter)
    parser.description = benchmark.__doc__
    json_file = {"metavar": "FILE", "type": Path, "help": "also write the figures to a JSON file"}
    for flag, settings in {**benchmark.OPTIONS, "--json": json_file}.items():
        parser.add_argument(flag, **settings)
    args = parser.parse_args(options)
    from benchmarks.common.report import machine, silence  # after --help, which needs no torch

    silence()
    figures = benchmark.main(args)
    print(f"\nMeasured on {machine()}.")
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine(), "results": figures}, indent=1))


if __name__ == "__main__":
    main()
