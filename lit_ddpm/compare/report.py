"""A comparison as one HTML file that needs nothing beside it."""

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
import yaml
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from lit_ddpm.callbacks import plots
from lit_ddpm.compare.audit import ALLOWED, Audit
from lit_ddpm.compare.comparison import Comparison, Value, text_of
from lit_ddpm.compare.runs import Run
from lit_ddpm.diffusion.objective import weight_on_x0_mse
from lit_ddpm.diffusion.weighting import kl_weight

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
MIN_WIDTH = 320  # of a grid of samples, in pixels


def write_report(comparison: Comparison, runs: Sequence[Run], command: str, path: Path) -> None:
    """Writes the report.

    Args:
        comparison: What was found.
        runs: The runs, whose pictures and configurations are shown.
        command: What made it.
        path: The file.
    """
    drawn = {run.arm.name: run for run in runs if run.pictures and run.arm.name in comparison.results}
    seeds = "one seed" if comparison.num_seeds == 1 else f"{comparison.num_seeds} seeds"
    errors = "over the test images" if comparison.num_seeds == 1 else "over the seeds"
    versions = f"lit_ddpm with torch {torch.__version__} and lightning {lightning.__version__}"
    parts = [
        f"<h1>{escape(' · '.join(comparison.results))}</h1><pre>{escape(command)}</pre>",
        f"<p>{seeds}; the arms of a seed have the same initial weights where their networks are the same, the same "
        "order of the data, the same timesteps and noise at each step, and the same budget. ± is the standard error "
        f"{errors}. Bold: {comparison.rule()}.</p>",
        "<h2>Results on the test images</h2>",
        _table(comparison, comparison.columns()),
        "<h2>Each model measured with each objective</h2><p>Rows are what a model was trained with, columns what it is "
        "measured with: the objective's weight on the x0-MSE of the test images, averaged over t = 2..T.</p>",
        _table(comparison, comparison.cross_evaluation()),
        '<h2>Samples</h2><p>The same initial noise for every arm.</p><div class="row samples">',
        *(_figure(_samples(run.directory), name) for name, run in drawn.items()),
        '</div><h2>Where the bits go, and what the objectives weigh</h2><div class="row">',
        *(_figure(picture, caption) for picture, caption in _overlays(comparison)),
        "</div><h2>The equivalence audit</h2><p>Values and gradients of the full KL form and of the weighted x0-MSE, "
        f"at every t &ge; 2, with an output that is off by a tenth. In float64 {ALLOWED:g} is allowed.</p>",
        '<div class="row">',
        *(_figure(plot_audit(found), ", ".join(names), str(found)) for names, found in _different(comparison)),
        "</div><h2>Configurations</h2>",
        *(_details(f"{run.arm.name}, seed {run.seed}", yaml.safe_dump(run.config(), sort_keys=False)) for run in runs),
        f"<p>{escape(versions)}, Python {platform.python_version()}, {escape(platform.platform())}</p>",
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style>'
    path.write_text(head + "\n".join(parts) + "</html>\n")


def _table(comparison: Comparison, columns: dict[str, dict[str, Value]]) -> str:
    rows = ["".join(f"<th>{escape(name)}</th>" for name in ("trained with", *columns))]
    for arm in comparison.results:
        cells = [f"<td>{escape(arm)}</td>"]
        for name, values in columns.items():
            kind = ' class="best"' if arm in comparison.leaders(name, values) else ""
            cells.append(f"<td{kind}>{text_of(values.get(arm))}</td>")
        rows.append("".join(cells))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _figure(picture: Image.Image, *captions: str) -> str:
    file = io.BytesIO()
    picture.save(file, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    caption = "<br>".join(escape(line) for line in captions)
    alt = escape(captions[0], quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def _details(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _samples(directory: Path) -> Image.Image:
    with np.load(directory / "predict" / "samples.npz") as file:
        images = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2)
    grid: Image.Image = to_pil_image(make_grid(images, nrow=8, padding=1))
    times = max(1, -(-MIN_WIDTH // grid.width))
    return grid.resize((grid.width * times, grid.height * times), Image.Resampling.NEAREST)


def _overlays(comparison: Comparison) -> list[tuple[Image.Image, str]]:
    """The profiles, the weights and the rate-distortion curves of all arms, one picture each."""
    tables: dict[str, plots.Table] = {}
    for arm in comparison.arms:
        if arm.name in comparison.results:
            denoiser = arm.module.denoiser
            t = torch.arange(2, denoiser.schedule.num_steps + 1)
            weight = weight_on_x0_mse(arm.module.objective, denoiser)
            of_kl = kl_weight(denoiser.schedule, t, denoiser.variance).tolist()
            nothing = (np.zeros(len(t)), np.zeros(len(t)))
            each = [
                plots.profile_table(result.report, nothing, (weight / weight.mean()).tolist(), of_kl)
                for result in comparison.results[arm.name]
            ]
            tables[arm.name] = {column: np.mean([table[column] for table in each], axis=0) for column in each[0]}
    unit = next(iter(comparison.results.values()))[0].report.unit
    return [
        (_lines("Where the bits go", tables, ("t", "t"), ("kl", f"$L_{{t-1}}$ ({unit})"), log=True), "the KL terms"),
        (_lines("Weight on the x0-MSE", tables, ("t", "t"), ("weight", "weight / its mean"), log=True), "the weights"),
        (
            _lines("Rate and distortion", tables, ("rate", f"rate ({unit})"), ("rmse", r"RMSE of $\hat x_0$")),
            "what is left to say, and what has been paid",
        ),
    ]


def _lines(
    title: str, tables: dict[str, plots.Table], x: tuple[str, str], y: tuple[str, str], log: bool = False
) -> Image.Image:
    def draw(axes: "Axes") -> None:
        for i, (name, table) in enumerate(tables.items()):
            style = ("-", "--", ":")[i % 3]  # curves that lie on one another are all seen
            axes.plot(table[x[0]], table[y[0]], label=name, color=_colour(i), linestyle=style)
        if log:
            axes.set_yscale("log")

    return plots.plot(title, x[1], y[1], draw)


def _colour(number: int) -> str:
    return plots.PALETTE[number % len(plots.PALETTE)]


def _different(comparison: Comparison) -> list[tuple[list[str], Audit]]:
    """The audits that differ, each with the arms that it holds for."""
    found: dict[str, tuple[list[str], Audit]] = {}
    for name, of_arm in comparison.audits.items():
        found.setdefault(str(of_arm), ([], of_arm))[0].append(name)
    return list(found.values())


def plot_audit(found: Audit) -> Image.Image:
    """The relative difference of the two forms against t, for each precision; none at all is drawn at 1e-18."""

    def draw(axes: "Axes") -> None:
        for i, (name, values) in enumerate(found.values.items()):
            t, gradients = np.arange(2, len(values) + 2), _floor(found.gradients[name])
            axes.plot(t, _floor(values), color=_colour(i), linewidth=1.5, label=f"{name}, values")
            axes.plot(t, gradients, color=_colour(i), linewidth=1, linestyle=":", label=f"{name}, gradients")
        axes.axhline(ALLOWED, color="black", linewidth=1, linestyle="--")
        axes.set_yscale("log")

    return plots.plot("Difference of the two forms", "t", "relative difference", draw)


def _floor(values: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(values.clamp(min=1e-18))  # 0 has no place on a logarithmic axis
