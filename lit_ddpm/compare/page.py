"""A comparison as a self-contained HTML file."""

import base64
import io
import platform
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from lit_ddpm._internal.files import atomic_write
from lit_ddpm._internal.templates import render
from lit_ddpm.compare.audit import ALLOWED
from lit_ddpm.compare.comparison import PARTS, Comparison
from lit_ddpm.compare.figures import Captioned, sample_grid
from lit_ddpm.compare.plan import versions
from lit_ddpm.compare.summary import gradient_rows, objective_sentences, summary

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_page(comparison: Comparison, figures: dict[str, Captioned], path: Path) -> None:
    """Writes the page with the figures of `lit_ddpm.compare.figures.figures`."""
    columns, plan = comparison.measurements(), comparison.plan
    terms = {name: columns.pop(name) for name in PARTS}
    first_runs = [run for run in plan.runs if run.is_first_seed and run.variant.name in comparison.results]
    grids = {run.variant.name: sample_grid(run) for run in first_runs}
    audits: dict[str, list[str]] = {}  # the variants by the result of their audit
    for name, line in plan.audits.items():
        audits.setdefault(line, []).append(name)
    speeds = {name: results[0].images_per_s for name, results in comparison.results.items()}
    page = render(
        TEMPLATE,
        comparison=comparison,
        summary=summary(comparison),
        measured=[variant.name for variant in plan.variants if variant.checkpoint is not None],
        results=comparison.rows(columns, _bold),
        terms=comparison.rows(terms, _bold),
        differences=comparison.rows(comparison.differences()),
        cross_evaluation=comparison.rows(comparison.cross_evaluation(), _bold),
        samples={name: _data_url(grid) for name, grid in grids.items() if grid is not None},
        objectives=objective_sentences(comparison),
        figures={name: (caption, _data_url(picture)) for name, (caption, picture) in figures.items()},
        gradients=gradient_rows(comparison),
        audits=audits,
        allowed=f"{ALLOWED:g}",
        # They are not results, since they depend on the machine and its load.
        speeds=[f"{name} {speed:,.0f}" for name, speed in speeds.items() if speed is not None],
        versions=[f"{name} {version}" for name, version in versions().items()]
        + [f"Python {platform.python_version()}", platform.platform()],
    )
    with atomic_write(path) as partial:
        partial.write_text(page)


def _bold(text: str, is_leader: bool) -> str:
    return Markup('<b class="best">{}</b>').format(text) if is_leader else text


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
