"""A comparison as a self-contained HTML file."""

import base64
import io
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import numpy as np
import torch
from PIL import Image

from lit_ddpm._internal.files import atomic_write
from lit_ddpm.callbacks import plots
from lit_ddpm.callbacks.pictures import DRAWN_DIMS, draw_samples
from lit_ddpm.compare.audit import ALLOWED, Audit
from lit_ddpm.compare.comparison import Comparison, Value, text_of
from lit_ddpm.compare.runs import Run
from lit_ddpm.data.pixels import Standardization, to_float
from lit_ddpm.diffusion.objective import weight_on_x0_mse
from lit_ddpm.training.checkpoint import STATE_KEY, load_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
.best { font-weight: bold; color: #0b5394 }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem }
figure { margin: 0 } figcaption { text-align: center } img { max-width: 100% }
.samples img { image-rendering: pixelated }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto }
"""
MIN_WIDTH = 320  # of a sample grid, in pixels


def write_report(comparison: Comparison, runs: Sequence[Run], command: str, path: Path) -> None:
    """Writes the report; the samples and configurations are those of the runs."""
    runs_with_samples = {run.arm.name: run for run in runs if run.draws_samples and run.arm.name in comparison.results}
    measured = ", ".join(arm.name for arm in comparison.arms if arm.checkpoint is not None)
    origin = f"Trained before, and only measured here: {measured}. " if measured else ""
    seeds = "One seed" if comparison.num_seeds == 1 else f"{comparison.num_seeds} seeds"
    if any(arm.checkpoint is None for arm in comparison.arms):
        origin += (
            f"{seeds}; the arms of a seed have the same initial weights if their networks are the same, the same data "
            "order, the same timesteps and noise at each step, and the same budget. "
        )
    errors = "over the test images" if comparison.num_seeds == 1 else "over the seeds"
    versions = f"lit_ddpm with torch {torch.__version__} and lightning {lightning.__version__}"
    parts = [
        f"<h1>{escape(' · '.join(comparison.results))}</h1><pre>{escape(command)}</pre>",
        f"<p>{escape(origin)}± is the standard error {errors}. Bold: {comparison.rule()}.</p>",
        "<h2>Results on the test images</h2>",
        _table(comparison, comparison.columns()),
        "<h2>Cross-evaluation</h2><p>Each row is a model, each column an objective: its weight times the x0-MSE of the "
        "test images, averaged over t = 2..T.</p>",
        _table(comparison, comparison.cross_evaluation()),
        '<h2>Samples</h2><p>The same initial noise for every arm.</p><div class="row samples">',
        *(_figure(picture, name) for name, run in runs_with_samples.items() for picture in _sample_grids(run)),
        '</div><h2>KL terms, weights and rate-distortion curves</h2><div class="row">',
        *(_figure(picture, caption) for caption, picture in _overlays(comparison).items()),
        "</div><h2>Equivalence audit</h2><p>Values and gradients of the full KL and of the weighted x0-MSE, "
        f"at every t &ge; 2, for an output with an error of 0.1. In float64 {ALLOWED:g} is allowed.</p>",
        '<div class="row">',
        *(_figure(plot_audit(result), ", ".join(names), str(result)) for names, result in _distinct_audits(comparison)),
        "</div><h2>Configurations</h2>",
        *(f"<details><summary>{escape(r.name)}</summary><pre>{escape(r.config_yaml())}</pre></details>" for r in runs),
        f"<p>{escape(versions)}, Python {platform.python_version()}, {escape(platform.platform())}</p>",
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style>'
    with atomic_write(path) as partial:
        partial.write_text(head + "\n".join(parts) + "</html>\n")


def _table(comparison: Comparison, columns: dict[str, dict[str, Value]]) -> str:
    rows = ["".join(f"<th>{escape(name)}</th>" for name in ("trained with", *columns))]
    for arm in comparison.results:
        cells = [f"<td>{escape(arm)}</td>"]
        for name, values in columns.items():
            kind = ' class="best"' if arm in comparison.leaders(name, values) else ""
            cells.append(f"<td{kind}>{text_of(values.get(arm))}</td>")
        rows.append("".join(cells))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _figure(image: Image.Image, *captions: str) -> str:
    file = io.BytesIO()
    image.save(file, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    caption = "<br>".join(escape(line) for line in captions)
    alt = escape(captions[0], quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def _sample_grids(run: Run) -> list[Image.Image]:
    """Returns the picture of the samples of a run; none if they are not sequences, images or volumes."""
    predictions = run.files.predictions
    with np.load(predictions / "samples.npz") as file:
        samples = torch.from_numpy(file["arr_0"])
    state = load_checkpoint(run.checkpoint)[STATE_KEY]
    levels, values = state["data_levels"] or 256, state["standardization"]
    if list(predictions.glob("*.png")):  # [N, H, W, C] in the range of their type
        samples, levels = samples.permute(0, 3, 1, 2), 256 if samples.dtype == torch.uint8 else levels
    if samples.ndim - 2 not in DRAWN_DIMS:
        return []
    standardization = None if values is None else Standardization(**values)
    scaled = to_float(samples, levels) if standardization is None else standardization.apply(samples)
    grid, _ = draw_samples(scaled, 8, levels, standardization)
    zoom = max(1, -(-MIN_WIDTH // grid.width))
    return [grid.resize((grid.width * zoom, grid.height * zoom), Image.Resampling.NEAREST)]


def _overlays(comparison: Comparison) -> dict[str, Image.Image]:
    """Plots the KL terms, the weights and the rate-distortion curves of all arms, by caption."""
    tables: dict[str, plots.Table] = {}
    for arm in comparison.arms:
        if arm.name in comparison.results:
            weight = weight_on_x0_mse(arm.module.objective, arm.module.denoiser)
            relative, unused = (weight / weight.mean()).tolist(), [0.0] * len(weight)
            by_seed = [
                plots.profile_table(result.report, (unused, unused), relative, unused)
                for result in comparison.results[arm.name]
            ]
            tables[arm.name] = {name: np.mean([table[name] for table in by_seed], axis=0) for name in by_seed[0]}
    unit = next(iter(comparison.results.values()))[0].report.unit

    def lines(title: str, x: str, x_label: str, y: str, y_label: str, scale: str = "linear") -> Image.Image:
        def draw(axes: "Axes") -> None:
            for i, (name, table) in enumerate(tables.items()):
                style = ("-", "--", ":")[i % 3]  # curves that coincide remain visible
                axes.plot(table[x], table[y], label=name, color=_color(i), linestyle=style)
            axes.set_yscale(scale)

        return plots.plot(title, x_label, y_label, draw)

    kl = lines("KL terms by timestep", "t", "t", "kl", f"$L_{{t-1}}$ ({unit})", "log")
    weights = lines("Weight on the x0-MSE", "t", "t", "weight", "weight / its mean", "log")
    rate = lines("Rate-distortion curve", "rate", f"rate ({unit})", "rmse", r"RMSE of $\hat x_0$")
    return {
        "the KL terms": kl,
        "the weight of each objective on the x0-MSE": weights,
        "the RMSE of x0_hat against the cumulative bound": rate,
    }


def _color(number: int) -> str:
    return plots.PALETTE[number % len(plots.PALETTE)]


def _distinct_audits(comparison: Comparison) -> list[tuple[list[str], Audit]]:
    """Returns the audits without duplicates, each with the names of its arms."""
    distinct: dict[str, tuple[list[str], Audit]] = {}
    for name, result in comparison.audits.items():
        distinct.setdefault(str(result), ([], result))[0].append(name)
    return list(distinct.values())


def plot_audit(result: Audit) -> Image.Image:
    """Plots the relative difference of both forms against t for each precision; differences of 0 are drawn at 1e-18."""

    def draw(axes: "Axes") -> None:
        for i, name in enumerate(result.values):
            # A logarithmic axis has no 0.
            values, gradients = (x[name].clamp(min=1e-18).numpy() for x in (result.values, result.gradients))
            t = np.arange(2, len(values) + 2)
            axes.plot(t, values, color=_color(i), linewidth=1.5, label=f"{name}, values")
            axes.plot(t, gradients, color=_color(i), linewidth=1, linestyle=":", label=f"{name}, gradients")
        axes.axhline(ALLOWED, color="black", linewidth=1, linestyle="--")
        axes.set_yscale("log")

    return plots.plot("Difference of both forms", "t", "relative difference", draw)
