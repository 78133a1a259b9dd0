"""Plots of the bound, in a style that is readable at thumbnail size."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lit_ddpm.likelihood.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUCKETS = 48
STYLE: Any = {
    "font.size": 14,
    "axes.titlesize": 15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2.5,
    "legend.frameon": False,
}
PALETTE = ("#0b5394", "#e06c00", "#2e7d32", "#8e24aa", "#c62828", "#00838f")
BLUE, ORANGE = PALETTE[:2]

Column = NDArray[np.float64]
Table = dict[str, Column]


def render(draw: "Callable[[Figure], object]", size: tuple[float, float]) -> Image.Image:
    """Returns a figure of a `size` in inches that `draw` fills. No global state of matplotlib is used."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        draw(figure)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def plot(title: str, x: str, y: str, draw: "Callable[[Axes], object]") -> Image.Image:
    """Returns a plot in the style of the package; `draw` fills its axes."""

    def draw_figure(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.set(title=title, xlabel=x, ylabel=y)
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()

    return render(draw_figure, (6, 4))


def bucket_means(totals: ArrayLike, counts: ArrayLike) -> Column:
    """Returns totals over counts of at most `BUCKETS` groups of neighboring timesteps; NaN without counts."""
    parts = [np.array_split(np.asarray(x, float), min(BUCKETS, len(np.asarray(x)))) for x in (totals, counts)]
    return np.array([total.sum() / count.sum() if count.sum() else np.nan for total, count in zip(*parts, strict=True)])


def profile_table(
    report: Report, training: tuple[ArrayLike, ArrayLike], weight: Sequence[float], kl_weight: Sequence[float]
) -> Table:
    """Returns the bound by timestep, t = 2..T in at most `BUCKETS` buckets.

    The columns are ``t`` (the middle of a bucket), ``kl`` (one term), ``kl_training``, ``rate`` (the cumulative bound
    from T down to t), ``rmse`` (of x0_hat), ``weight`` and ``kl_weight`` (on the x0-MSE, of the objective and the KL).
    `training` has the sum of the training batches' KL terms at each t, in the unit of the report, and their count.
    """
    profile, visits = np.array(report.profile), np.array(report.visits[1:], float)
    ones = np.ones_like(profile)
    rate = report.terms["prior"].value + profile[::-1].cumsum()[::-1] - profile
    kl, squared = (np.array([x or 0.0 for x in column]) * visits for column in (report.kl, report.x0_mse[1:]))
    return {
        "t": bucket_means(np.arange(2, len(profile) + 2), ones),
        "kl": bucket_means(kl, visits),
        "kl_training": bucket_means(*training),
        "rate": bucket_means(rate, ones),
        "rmse": np.sqrt(bucket_means(squared, visits)),
        "weight": bucket_means(weight, ones),
        "kl_weight": bucket_means(kl_weight, ones),
    }


def plot_terms(table: Table, unit: str) -> Image.Image:
    """Plots each KL term against t, and its mean over training batches."""

    def draw(axes: "Axes") -> None:
        axes.plot(table["t"], table["kl"], color=BLUE, label="held-out images")
        axes.plot(table["t"], table["kl_training"], color=ORANGE, linewidth=1.2, label="training, raw weights")
        axes.set_yscale("log")

    return plot("KL terms by timestep", "t", f"$L_{{t-1}}$ ({unit})", draw)


def plot_rate(table: Table, total: float, unit: str) -> Image.Image:
    """Plots the cumulative bound from T down to t."""

    def draw(axes: "Axes") -> None:
        axes.fill_between(table["t"], table["rate"], color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(table["t"], table["rate"], color=BLUE)
        axes.axhline(total, color=ORANGE, linestyle="--", label=f"total {total:.3f}")
        axes.set_ylim(bottom=0)
        axes.invert_xaxis()

    return plot("Cumulative bound from T down to t", "t", unit, draw)


def plot_rate_distortion(table: Table, unit: str) -> Image.Image:
    """Plots the RMSE of x0_hat against the rate, the cumulative bound (Ho et al. 2020, figure 5)."""

    def draw(axes: "Axes") -> None:
        axes.plot(table["rate"], table["rmse"], color=BLUE, marker="o", markersize=4)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)

    return plot("Rate-distortion curve", f"rate ({unit})", r"RMSE of $\hat x_0$", draw)


def plot_weights(weight: Sequence[float], kl_weight: Sequence[float], name: str) -> Image.Image:
    """Plots the weights on the x0-MSE of the objective and of the KL, for t = 2..T."""

    def draw(axes: "Axes") -> None:
        t = np.arange(2, len(kl_weight) + 2)
        axes.plot(t, kl_weight, color=ORANGE, linewidth=4, alpha=0.5, label="KL: $w_t$")
        axes.plot(t, weight, color=BLUE, label=name)
        axes.set_yscale("log")

    return plot("Weight on the x0-MSE", "t", "weight", draw)
