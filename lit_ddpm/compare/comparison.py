"""The results of a comparison: a table of its arms, and each trained model under every arm's objective."""

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_ddpm._internal.files import atomic_write
from lit_ddpm.compare.arms import Arm
from lit_ddpm.compare.audit import Audit
from lit_ddpm.compare.runs import Result
from lit_ddpm.diffusion.objective import weight_on_x0_mse

SPEED = "images/s"
# Two-sided 95% quantiles of Student's t by the number of seeds. For one seed the normal quantile applies, since the
# error is that over many test images.
FACTORS = {1: 1.96, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31}


@dataclass(frozen=True)
class Value:
    """A mean over seeds and its standard error.

    With one seed the error of a term of the ledger is that over the test images; that of other values is NaN.
    """

    mean: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """The results of all arms."""

    arms: list[Arm]
    results: dict[str, list[Result]]  # by name of the arm, one for each seed; without arms with a failed run
    audits: dict[str, Audit]  # by name of the arm
    num_seeds: int
    failed: dict[str, Path]  # the logs of failed runs by name of the run; resuming the comparison repeats them

    def columns(self) -> dict[str, dict[str, Value]]:
        """Returns the terms of the bound, the sample metrics and the speed: for each column the values of the arms.

        The column ``best variance`` is the total with the best variance, see `Report.best_variance`.
        """
        columns: dict[str, dict[str, Value]] = {}
        for arm, results in self.results.items():
            for term in ("total", "prior", "diffusion", "reconstruction"):
                entries = [result.report.terms[term] for result in results]
                name = results[0].report.unit if term == "total" else term
                single_seed_error = entries[0].se_images
                columns.setdefault(name, {})[arm] = _value([entry.value for entry in entries], single_seed_error)
                best = [result.report.best_variance for result in results if result.report.best_variance is not None]
                if term == "total" and len(best) == len(results):
                    columns.setdefault("best variance", {})[arm] = _value(best, math.nan)
            for name in results[0].samples:
                if not name.startswith("kid_std"):
                    values = [result.samples[name] for result in results]
                    columns.setdefault(name, {})[arm] = _value(values, math.nan)
        for arm, results in self.results.items():
            speeds = [result.images_per_s for result in results if result.images_per_s is not None]
            if speeds:
                columns.setdefault(SPEED, {})[arm] = _value(speeds, math.nan)
        return columns

    def cross_evaluation(self) -> dict[str, dict[str, Value]]:
        """Returns each model under each arm's objective: ``cross["kl"]["x0_mse"]`` is the KL of the x0-MSE's model.

        An objective is a weight on the x0-MSE here, see `weight_on_x0_mse`, averaged over t = 2..T. The x0-MSE is that
        of the test images in the exact bound, with x0_hat clipped as in sampling. Arms with different schedules have no
        value, since their timesteps are not comparable.
        """
        cross: dict[str, dict[str, Value]] = {}
        for judge in self.arms:
            weight = weight_on_x0_mse(judge.module.objective, judge.module.denoiser)
            for arm in self.arms:
                if arm.name in self.results and _same_schedule(arm, judge):
                    errors = [torch.tensor([e or 0.0 for e in r.report.x0_mse[1:]]) for r in self.results[arm.name]]
                    values = [float((weight * error).mean()) for error in errors]
                    cross.setdefault(judge.name, {})[arm.name] = _value(values, math.nan)
        return cross

    def table(self) -> str:
        """Returns the columns and the cross-evaluation as text for a terminal."""
        title = f"mean ± standard error over {self.num_seeds} seeds"
        if self.num_seeds == 1:
            title = "one seed, ± standard error over the test images"
        return (
            f"{self._grid(self.columns())}\n{title}; * {self.rule()}\n\n"
            "cross-evaluation: each model under each objective, on the test images\n"
            f"{self._grid(self.cross_evaluation())}"
        )

    def leaders(self, column: str, values: dict[str, Value]) -> set[str]:
        """Returns the arms of a column that are marked, see `rule`."""
        if column == SPEED:
            return set()
        sign = -1 if column.startswith("is_") else 1  # the Inception score is the only metric where larger is better
        factor = FACTORS.get(self.num_seeds, 2.26)

        def beats(arm: str, other: str) -> bool:
            gap = sign * (values[other].mean - values[arm].mean)
            return gap > factor * math.hypot(values[arm].error, values[other].error)

        return {a for a in values if any(beats(a, b) for b in values) and not any(beats(b, a) for b in values)}

    def rule(self) -> str:
        """Returns the meaning of a mark: the test behind it."""
        test = "t-test over the seeds" if self.num_seeds > 1 else "z-test over the test images"
        return f"significantly better than another row, and no row is significantly better (unpaired {test}, 95%)"

    def _grid(self, columns: dict[str, dict[str, Value]]) -> str:
        cells = [["trained with", *columns]]
        for arm in self.results:
            marks = [" *" if arm in self.leaders(name, values) else "  " for name, values in columns.items()]
            texts = [text_of(values.get(arm)) for values in columns.values()]
            cells.append([arm, *(text + mark for text, mark in zip(texts, marks, strict=True))])
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        lines = []
        for first, *others in cells:
            rest = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *rest]).rstrip())
        return "\n".join(lines)

    def save_csv(self, path: Path) -> None:
        """Writes both tables as one, a row for each arm; each error follows its value, the speed is last."""
        columns = self.columns()
        speed = columns.pop(SPEED, {})
        columns |= {f"measured_with_{name}": values for name, values in self.cross_evaluation().items()}
        columns |= {SPEED: speed} if speed else {}
        with atomic_write(path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["trained_with", "seeds", *(n for name in columns for n in (name, f"{name}_error"))])
            for arm in self.results:
                cells = [values.get(arm, Value(math.nan, math.nan)) for values in columns.values()]
                numbers = [x for value in cells for x in (value.mean, value.error)]
                writer.writerow([arm, self.num_seeds, *("" if math.isnan(x) else repr(x) for x in numbers)])


def text_of(value: Value | None) -> str:
    """Formats a value and its error, to two digits of the error."""
    if value is None or math.isnan(value.mean):
        return "—"
    if math.isnan(value.error) or value.error == 0:
        return f"{value.mean:.4g}"
    digits = min(max(0, 1 - math.floor(math.log10(value.error))), 7)
    return f"{value.mean:,.{digits}f} ± {value.error:.{digits}f}"


def _same_schedule(arm: Arm, other: Arm) -> bool:
    schedules = [a.module.denoiser.schedule for a in (arm, other)]
    tables = [schedule.log_alpha_bar(torch.arange(schedule.num_steps + 1)) for schedule in schedules]
    return torch.equal(*tables)


def _value(values: Sequence[float], single_seed_error: float) -> Value:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else single_seed_error
    return Value(statistics.mean(values), error)
