"""The results of a comparison: tables of its variants, their paired differences, and what their objectives weight."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_ddpm._internal.files import atomic_write
from lit_ddpm._internal.tables import text_table
from lit_ddpm.compare.measurement import Measurement
from lit_ddpm.compare.plan import Plan
from lit_ddpm.compare.runs import Result
from lit_ddpm.compare.variants import Variant
from lit_ddpm.diffusion.weighting import kl_weight
from lit_ddpm.likelihood.report import TERMS

Columns = dict[str, dict[str, Measurement]]  # by the names of column and variant

PARTS = TERMS[:-1]
"""The terms that add up to the total."""

BEST_VARIANCE = "best variance"


@dataclass(frozen=True)
class Comparison:
    """The results of a plan."""

    plan: Plan
    results: dict[str, list[Result]]  # by name of the variant, one for each seed; without variants with a missing run

    @property
    def missing(self) -> dict[str, Path]:
        """The logs of the runs that are not complete, by name of the run."""
        return {run.name: run.files.log for run in self.plan.runs if not run.done}

    @property
    def total(self) -> str:
        """The column of the total, ``bits/dim`` or ``nats/dim``."""
        return next(iter(self.results.values()))[0].report.unit

    def measurements(self) -> Columns:
        """Returns the terms of the bound and the sample metrics.

        The column ``best variance`` is the total with the best variance, see `Report.best_variance`.
        """
        columns: Columns = {}
        same_images = self._same_images()
        for variant, results in self.results.items():
            for term in ("total", *PARTS):
                values = np.array([result.report.terms[term].value for result in results])
                images = np.stack([result.images[term] for result in results]) if same_images else None
                name = results[0].report.unit if term == "total" else term
                columns.setdefault(name, {})[variant] = Measurement(values, images)
                best = [result.report.best_variance for result in results if result.report.best_variance is not None]
                if term == "total" and len(best) == len(results):
                    columns.setdefault(BEST_VARIANCE, {})[variant] = Measurement(np.array(best))
        for variant, results in self.results.items():
            for name in results[0].samples:
                if not name.startswith(("kid_std", "fid_se", "fid_infinite")):
                    values = np.array([result.samples[name] for result in results])
                    columns.setdefault(name, {})[variant] = Measurement(values)
        return columns

    def _same_images(self) -> bool:
        """Whether all runs measured the same test images."""
        first, *others = [result.images["index"] for results in self.results.values() for result in results]
        return all(np.array_equal(first, other) for other in others)

    def cross_evaluation(self) -> Columns:
        """Returns each model under each variant's objective: ``cross["kl"]["x0_mse"]`` is the KL of the x0-MSE's model.

        An objective is a weight on the x0-MSE here, see `weight_on_x0_mse`, averaged over t = 2..T. The x0-MSE is that
        of the test images in the exact bound, with x0_hat clipped as in sampling. Variants with different schedules
        have no value, since their timesteps are not comparable.
        """
        cross: Columns = {}
        for judge in self.plan.variants:
            weight = judge.weight
            for variant in self.plan.variants:
                if variant.name in self.results and same_schedule(variant, judge):
                    errors = [torch.tensor([e or 0.0 for e in r.report.x0_mse[1:]]) for r in self.results[variant.name]]
                    values = np.array([float((weight * error).mean()) for error in errors])
                    cross.setdefault(judge.name, {})[variant.name] = Measurement(values)
        return cross

    def differences(self) -> Columns:
        """Returns the paired differences of the total: ``differences["kl"]["x0_mse"]`` is x0_mse minus kl."""
        total = self.measurements()[self.total]
        return {column: {row: total[row] - total[column] for row in total if row != column} for column in total}

    def sharpening(self) -> float:
        """Returns how many times smaller the errors of paired differences of the total are than unpaired ones."""
        total = self.measurements()[self.total]
        ratios = [
            math.hypot(total[row].error, total[column].error) / difference.error
            for column, rows in self.differences().items()
            for row, difference in rows.items()
            if difference.error > 0
        ]
        return float(np.median(ratios)) if ratios else math.nan

    def leaders(self, column: str, values: dict[str, Measurement]) -> set[str]:
        """Returns the variants of a column that are marked, see `rule`."""

        def beats(variant: str, other: str) -> bool:
            lower, higher = (other, variant) if is_larger_better(column) else (variant, other)
            return (values[higher] - values[lower]).is_positive()

        return {a for a in values if any(beats(a, b) for b in values) and not any(beats(b, a) for b in values)}

    @property
    def replications(self) -> str:
        """What errors and tests are over."""
        return "the test images" if self.plan.num_seeds == 1 else "the seeds and test images"

    def rule(self) -> str:
        """Returns the meaning of a mark: the test behind it."""
        test = f"paired t-test over {self.replications}, 95%"
        return f"significantly better than another row, and no row is significantly better ({test})"

    def __str__(self) -> str:
        """Returns the columns, the paired differences and the cross-evaluation as text for a terminal."""
        num_seeds = self.plan.num_seeds
        over = "the test images; one seed" if num_seeds == 1 else f"{num_seeds} seeds and the test images"
        results, cross = (text_table(self.rows(c, _star)) for c in (self.measurements(), self.cross_evaluation()))
        parts = [f"{results}\n± standard error over {over}; * {self.rule()}"]
        if len(self.results) > 1:
            differences = text_table(self.rows(self.differences()))
            parts.append(f"{self.total}, row minus column ± paired standard error\n{differences}")
            if not math.isnan(sharpening := self.sharpening()):
                parts[-1] += f"\nthe errors are {sharpening:.1f} times smaller than without pairing (median)"
        parts.append(f"cross-evaluation: each model under each objective, on the test images\n{cross}")
        return "\n\n".join(parts)

    def rows(self, columns: Columns, mark: Callable[[str, bool], str] | None = None) -> list[list[str]]:
        """Returns a header and a row for each variant; `mark` formats the text of a value and whether it is a leader.

        Without it the values are differences, with their signs.
        """
        rows = [[variant] for variant in self.results]
        for name, values in columns.items():
            leaders = self.leaders(name, values) if mark else set()
            for row in rows:
                text = text_of(values.get(row[0]), signed=mark is None)
                row.append(mark(text, row[0] in leaders) if mark else text)
        return [["trained with", *columns], *rows]

    def tables(self) -> dict[str, list[list[Any]]]:
        """Returns ``table``, a row for each variant, and ``differences``, a row for each pair of variants.

        Each begins with a header. The first has all columns and the cross-evaluation; each error follows its value.
        """
        columns = self.measurements()
        columns |= {f"measured_with_{name}": values for name, values in self.cross_evaluation().items()}
        rows: list[list[Any]] = [["trained_with", "seeds", *(n for name in columns for n in (name, f"{name}_error"))]]
        for variant in self.results:
            cells = [_numbers(values.get(variant)) for values in columns.values()]
            rows.append([variant, self.plan.num_seeds, *(x for cell in cells for x in cell)])
        pairs: list[list[Any]] = [["column", "trained_with", "minus", "difference", "error"]]
        for name, values in columns.items():
            pairs += [[name, a, b, *_numbers(values[a] - values[b])] for a in values for b in values if a != b]
        return {"table": rows, "differences": pairs}

    def save_csv(self, directory: Path) -> None:
        """Writes ``table.csv`` and ``differences.csv``, see `tables`."""
        for name, rows in self.tables().items():
            with atomic_write(directory / f"{name}.csv") as partial, partial.open("w", newline="") as file:
                csv.writer(file).writerows(rows)

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns for each variant log SNR(t) and its objective's factor on the bound, each ``[T - 1]`` for t = 2..T.

        The factor is the weight on the x0-MSE over that of the KL, divided by its largest value.
        """
        factors = {}
        for variant in self.plan.variants:
            denoiser = variant.module.denoiser
            t = torch.arange(2, denoiser.schedule.num_steps + 1)
            factor = variant.weight / kl_weight(denoiser.schedule, t)
            factors[variant.name] = denoiser.schedule.log_snr(t), factor / factor.max()
        return factors


def is_bound(factor: Tensor) -> bool:
    """Returns whether an objective is a bound of images with noise added, by its factor for t = 2..T.

    That is the case if the factor does not decrease with t (Kingma and Gao 2023, theorem 1).
    """
    return bool((factor.diff() >= -1e-6 * factor[:-1]).all())


def is_larger_better(column: str) -> bool:
    """Returns whether larger values of a column are better: those of the Inception score only."""
    return column.startswith("is_")


def _star(text: str, is_leader: bool) -> str:
    return f"{text} {'*' if is_leader else ' '}"


def text_of(measurement: Measurement | None, signed: bool = False) -> str:
    """Formats a mean and its error, to two digits of the error."""
    if measurement is None or math.isnan(measurement.mean):
        return "—"
    mean, error, sign = measurement.mean, measurement.error, "+" if signed else ""
    if math.isnan(error) or error == 0:
        return f"{mean:{sign}.4g}"
    digits = min(max(0, 1 - math.floor(math.log10(error))), 7)
    return f"{mean:{sign},.{digits}f} ± {error:.{digits}f}"


def same_schedule(variant: Variant, other: Variant) -> bool:
    """Returns whether two variants have the same noise at every timestep."""
    schedules = [each.module.denoiser.schedule for each in (variant, other)]
    tables = [schedule.log_alpha_bar(torch.arange(schedule.num_steps + 1)) for schedule in schedules]
    return torch.equal(*tables)


def _numbers(measurement: Measurement | None) -> list[float | None]:
    values = (math.nan, math.nan) if measurement is None else (measurement.mean, measurement.error)
    return [None if math.isnan(value) else value for value in values]
