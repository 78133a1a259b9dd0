"""Where the bits of the digits go: one change of the model at a time, and any number of steps.

Trains `configs/digits_steps.yaml`, the model of version 0.1.0, one change after another up to `digits.yaml`, and
`digits_categorical.yaml`. Prints the parts of each total, the report of the shipped model at several numbers of steps,
and its exact likelihood, and draws the parts. Runs that are complete are not repeated.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common.report import table
from lit_ddpm.__main__ import main as lit_ddpm
from lit_ddpm.callbacks import plots
from lit_ddpm.cli.configs import find_config
from lit_ddpm.likelihood.report import Report
from lit_ddpm.training.run_directory import RunDirectory

CHANGES = {
    "256 timesteps": (),
    "log SNR, 1,000 steps": ("network.time", "schedule.num_steps"),
    "adaptive timesteps": ("timesteps",),
}
"""The settings of `configs/digits.yaml` that each model takes, in addition to those of the models before it."""

STEPS = (256, 1000, 4000)

OPTIONS = {
    "--output_dir": {"type": Path, "default": Path("runs/bits")},
    "--max_epochs": {"type": int, "default": 80},
    "--steps": {"type": int, "nargs": "+", "default": STEPS, "help": "the numbers of steps of the shipped model"},
}


def main(args: Namespace) -> dict[str, Any]:
    """Trains and measures."""
    overlay = yaml.safe_load(find_config("digits_steps").read_text())["model"]["init_args"]
    settings, models = dict(_flat(overlay)), {}
    for label, changes in CHANGES.items():
        settings = {name: value for name, value in settings.items() if name not in changes}
        models[label] = [f"--model.{name}={value}" for name, value in settings.items()]
    models["categorical outputs"] = ["--config", "digits_categorical"]
    directories = {label: args.output_dir / label.replace(" ", "_").replace(",", "") for label in models}
    epochs = f"--trainer.max_epochs={args.max_epochs}"
    reports = {
        label: _trained(directories[label], ["fit", "--config", "digits", *flags, epochs])
        for label, flags in models.items()
    }
    shipped = RunDirectory(directories["adaptive timesteps"])

    def variant(name: str, flag: str) -> Report:
        return _tested(shipped, shipped.path / name, ["--trainer.callbacks=[]", flag])

    by_steps = {f"{n:,}": variant(f"steps_{n}", f"--model.schedule.num_steps={n}") for n in args.steps}
    exact = variant("exact", "--exact")
    print("\n" + table(["model", *PARTS, "total"], [[label, *_parts(report)] for label, report in reports.items()]))
    rows = [
        [steps, *(f"{value:.4f}" for value in (_total(report), report.best_variance, report.limit))]
        for steps, report in by_steps.items()
    ]
    print("\n" + table(["steps", "bits/dim", "with the best variance", "with infinite steps"], rows))
    print(f"\n{exact}")
    path = args.output_dir / "bits.png"
    draw(reports).save(path)
    print(f"\nwritten to {path}")
    return {label: report.metrics("test") for label, report in {**reports, **by_steps, "exact": exact}.items()}


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the settings of nested classes as flags of the command line."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value["init_args"], f"{prefix}{name}.")
        else:
            yield prefix + name, value


PARTS = ("infinite steps", "finite steps", "fixed variance")
"""The parts of a total: its limit, and what the number of steps and sigma_q^2 instead of the best variance add."""


def _total(report: Report) -> float:
    return report.terms["total"].value


def _amounts(report: Report) -> tuple[float, float, float]:
    assert report.limit is not None  # the bound is exact
    assert report.best_variance is not None
    return report.limit, report.best_variance - report.limit, _total(report) - report.best_variance


def _parts(report: Report) -> list[str]:
    return [f"{value:.4f}" for value in (*_amounts(report), _total(report))]


def _trained(directory: Path, fit: list[str]) -> Report:
    """Trains and tests a model in a directory, unless it is complete."""
    run = RunDirectory(directory)
    if not run.report.is_file():
        lit_ddpm([*fit, f"--trainer.default_root_dir={directory}"])
    return _tested(run, directory, [])


def _tested(run: RunDirectory, directory: Path, flags: list[str]) -> Report:
    """Tests a trained model with further flags, unless a directory has the report."""
    path = RunDirectory(directory).report
    if not path.is_file():
        where = f"--trainer.default_root_dir={directory}"
        lit_ddpm(["test", "--ckpt_path", str(run.best_or_last_checkpoint()), where, *flags])
    return Report.load(path)


def draw(reports: dict[str, Report]) -> Any:
    """Draws the parts of each total as stacked bars."""

    def fill(figure: Any) -> None:
        axes = figure.add_subplot()
        colors = (plots.BLUE, plots.ORANGE, "#f6b26b")
        for row, report in enumerate(reports.values()):
            left = 0.0
            for value, color, part in zip(_amounts(report), colors, PARTS, strict=True):
                axes.barh(row, value, left=left, color=color, label=part if row == 0 else None)
                left += value
            axes.text(left + 0.002, row, f"{left:.4f}", va="center")
        axes.set_yticks(range(len(reports)), [("+ " if row else "") + label for row, label in enumerate(reports)])
        axes.invert_yaxis()
        largest = max(map(_total, reports.values()))
        smallest = min(_amounts(report)[0] for report in reports.values())
        axes.set_xlim(smallest - 0.1, largest + 0.03)
        axes.set_xlabel("bits/dim of the test images (the axis does not begin at 0)")
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper right", ncols=3)

    return plots.render(fill, (11, 0.8 * len(reports) + 1.6))
