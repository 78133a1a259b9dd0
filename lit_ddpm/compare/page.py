"""A comparison as a self-contained HTML file."""

import base64
import io
import math
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from lit_ddpm._internal.files import atomic_write
from lit_ddpm.compare.audit import ALLOWED
from lit_ddpm.compare.comparison import PARTS, Columns, Comparison, text_of
from lit_ddpm.compare.figures import Captioned, sample_grid
from lit_ddpm.compare.plan import Plan, versions
from lit_ddpm.compare.runs import Run
from lit_ddpm.compare.summary import gradient_rows, objective_sentences, summary

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
td, th { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: #fff }
.best { color: #0b5394 }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem }
figure { margin: 0 0 1rem } figcaption { margin-top: .3rem } img { max-width: 100% }
.samples img { width: 100%; image-rendering: pixelated }
.samples figure { max-width: 64rem }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto }
.summary li { margin: .3rem 0 }
"""


def write_report(comparison: Comparison, plan: Plan, figures: dict[str, Captioned], path: Path) -> None:
    """Writes the report with the figures of `lit_ddpm.compare.figures.figures`."""
    columns = comparison.measurements()
    shown = {name: values for name, values in columns.items() if name not in PARTS}
    objectives = objective_sentences(comparison)
    parts = [
        f"<h1>{escape(' · '.join(comparison.results))}</h1>",
        '<ul class="summary">',
        *(f"<li><b>{escape(variant)}</b>: {escape(line)}</li>" for variant, line in summary(comparison).items()),
        "</ul>",
        f"<p>{escape(_origin(comparison))}</p>",
        "<h2>Results on the test images</h2>",
        _table(comparison, shown),
        f"<p>± is the standard error over {comparison.replications}. Bold: {escape(comparison.rule())}.</p>",
        _details("The terms of the bound", _table(comparison, {name: columns[name] for name in PARTS})),
        *_differences(comparison),
        _details(
            "Each model under each objective",
            "<p>Each row is a model, each column an objective: its weight times the x0-MSE of the test images, "
            f"averaged over t = 2..T.</p>{_table(comparison, comparison.cross_evaluation())}",
        ),
        '<h2>Samples</h2><p>The same initial noise for every variant.</p><div class="samples">',
        *(_figure(picture, name) for name, picture in _samples(comparison, plan.runs).items()),
        "</div><h2>Why they differ</h2><ul>",
        *(
            f"<li>The objective of <b>{escape(variant)}</b> is {escape(line)}.</li>"
            for variant, line in objectives.items()
        ),
        '</ul><div class="row">',
        *(_figure(picture, caption) for name, (caption, picture) in figures.items() if name != "gradients"),
        "</div>",
        *_gradients(comparison, figures),
        "<h2>Equivalence audit</h2><p>Values and gradients of the full KL and of the weighted x0-MSE, at every t "
        f"&ge; 2, for an output with an error of 0.1. In float64 {ALLOWED:g} is allowed.</p><ul>",
        *(
            f"<li>{escape(', '.join(names))}: {escape(line)}</li>"
            for line, names in _by_line(comparison.audits).items()
        ),
        "</ul><h2>Runs</h2>",
        f"<pre>{escape(plan.command)}</pre><p>{escape(_speeds(comparison))}</p>",
        *(_details(run.name, f"<pre>{escape(run.config_yaml())}</pre>") for run in plan.runs),
        f"<p>{escape(_versions())}</p>",
    ]
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(' · '.join(comparison.results))}</title><style>{STYLE}</style>"
    )
    with atomic_write(path) as partial:
        partial.write_text(head + "\n".join(parts) + "</html>\n")


def _origin(comparison: Comparison) -> str:
    measured = ", ".join(variant.name for variant in comparison.variants if variant.checkpoint is not None)
    text = f"Trained before, and only measured here: {measured}. " if measured else ""
    if any(variant.checkpoint is None for variant in comparison.variants):
        seeds = "One seed" if comparison.num_seeds == 1 else f"{comparison.num_seeds} seeds"
        text += (
            f"{seeds}. The variants of a seed have the same initial weights if their networks are the same, the same data "
            "order, the same timesteps and noise at each step, and the same budget."
        )
    return text


def _differences(comparison: Comparison) -> list[str]:
    """Returns the paired differences; nothing for a single variant."""
    if len(comparison.results) < 2:
        return []
    sharpening = comparison.sharpening()
    text = (
        "Row minus column. All variants measure the same images with the same noise, so the error of a difference is "
    )
    text += "paired" if math.isnan(sharpening) else f"paired: {sharpening:.1f} times smaller than without (median)"
    table = _table(comparison, comparison.differences(), signed=True)
    return [f"<h2>Differences in {escape(comparison.total)}</h2><p>{text}.</p>{table}"]


def _gradients(comparison: Comparison, figures: dict[str, Captioned]) -> list[str]:
    if "gradients" not in figures:
        return []
    caption, picture = figures["gradients"]
    table = _html_table([[escape(cell) for cell in row] for row in gradient_rows(comparison)])
    note = (
        "The gradient of each variant's objective at its final weights: the norm of its mean, and its standard deviation "
        "for one image. Saving: how many times more images uniform timesteps need than the optimal density, for the "
        "same noise."
    )
    return ["<h2>Gradients</h2>", _figure(picture, caption), table, f"<p>{note}</p>"]


def _table(comparison: Comparison, columns: Columns, signed: bool = False) -> str:
    leaders = [set() if signed else comparison.leaders(name, values) for name, values in columns.items()]
    rows = [["trained with", *map(escape, columns)]]
    for variant in comparison.results:
        texts = [text_of(values.get(variant), signed) for values in columns.values()]
        marked = [f'<b class="best">{t}</b>' if variant in best else t for t, best in zip(texts, leaders, strict=True)]
        rows.append([escape(variant), *marked])
    return _html_table(rows)


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of HTML cells, whose first row is the header."""
    header, *others = rows
    lines = ["".join(f"<th>{cell}</th>" for cell in header)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in others]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _figure(image: Image.Image, caption: str) -> str:
    file = io.BytesIO()
    image.save(file, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    text = escape(caption, quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _samples(comparison: Comparison, runs: Sequence[Run]) -> dict[str, Image.Image]:
    grids = {
        run.variant.name: sample_grid(run)
        for run in runs
        if run.is_first_seed and run.variant.name in comparison.results
    }
    return {name: grid for name, grid in grids.items() if grid is not None}


def _by_line(audits: dict[str, str]) -> dict[str, list[str]]:
    """Returns the variants by the result of their audit."""
    variants: dict[str, list[str]] = {}
    for name, line in audits.items():
        variants.setdefault(line, []).append(name)
    return variants


def _speeds(comparison: Comparison) -> str:
    """Returns the training speeds; they are not results, since they depend on the machine and its load."""
    speeds = {name: results[0].images_per_s for name, results in comparison.results.items()}
    known = [f"{name} {speed:,.0f}" for name, speed in speeds.items() if speed is not None]
    return f"Training speed in images/s: {', '.join(known)}." if known else ""


def _versions() -> str:
    parts = [f"{name} {version}" for name, version in versions().items()]
    return ", ".join([*parts, f"Python {platform.python_version()}", platform.platform()])
