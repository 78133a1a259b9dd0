"""The figures of a comparison."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image

from lit_ddpm.callbacks import plots
from lit_ddpm.callbacks.pictures import DRAWN_DIMS, draw_samples
from lit_ddpm.compare.audit import ALLOWED, Audit
from lit_ddpm.compare.comparison import Comparison, same_schedule
from lit_ddpm.compare.runs import Run
from lit_ddpm.data.pixels import to_float
from lit_ddpm.data.spec import DataSpec
from lit_ddpm.training.checkpoint import STATE_KEY, load_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Captioned = tuple[str, Image.Image]

GRID_WIDTH = 1024  # of a sample grid of 16 columns, in pixels
GRID_COLUMNS = 16
LOG_SNR = "log SNR (noise increases to the right)"


def style_of(number: int) -> dict[str, Any]:
    """Returns color and line style of a variant by its number; curves that coincide remain visible."""
    return {"color": plots.PALETTE[number % len(plots.PALETTE)], "linestyle": ("-", "--", ":", "-.")[number % 4]}


def figures(comparison: Comparison) -> dict[str, Captioned]:
    """Returns the figures with a line each that says what to see, by file name."""
    profiles = _profiles(comparison)
    found = {
        "factors": (
            "What each objective weights, relative to the bound: a curve that rises to the right gives fine detail "
            "less weight than the bound does.",
            _factors(comparison),
        ),
        "profile": (
            "Where the bits are: the area under a curve is the diffusion term. The variants differ where the curves "
            "do.",
            _terms(comparison, profiles),
        ),
        "rate_distortion": (
            "How much of the image is known after how many bits: lower is better at the same rate.",
            _rate_distortion(comparison, profiles),
        ),
    }
    if any(results[0].gradients is not None for results in comparison.results.values()):
        found["gradients"] = (
            "Left: signal and noise of one image's gradient. Middle: the timesteps that an objective should draw "
            "more often than uniformly. Right: at the weights of the first variant, the timesteps whose loss a step of "
            "each objective lowers (positive) or raises (negative).",
            gradient_figure(comparison),
        )
    return found


def _plot(
    comparison: Comparison,
    title: str,
    x: str,
    y: str,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    finish: "Callable[[Axes], object]",
) -> Image.Image:
    """Plots a curve for each variant with results; `finish` sets the limits and scales."""

    def draw(axes: "Axes") -> None:
        for number, variant in enumerate(comparison.plan.variants):
            if variant.name in comparison.results:
                axes.plot(*curves[variant.name], label=variant.name, **style_of(number))
        finish(axes)

    return plots.plot(title, x, y, draw)


def _factors(comparison: Comparison) -> Image.Image:
    factors = comparison.factors()
    least = min(float(factor.min()) for _, factor in factors.values())

    def finish(axes: "Axes") -> None:
        axes.set(yscale="log", ylim=(max(least / 2, 1e-5), 2))
        axes.xaxis.set_inverted(True)

    return _plot(comparison, "Factor of the objective on the bound", LOG_SNR, "factor / its largest", factors, finish)


def _profiles(comparison: Comparison) -> dict[str, plots.Table]:
    """Returns the columns of the profile of each variant, averaged over its seeds."""
    profiles = {}
    for variant, results in comparison.results.items():
        unused = [0.0] * len(results[0].report.profile)
        tables = [plots.profile_table(result.report, (unused, unused), unused, unused) for result in results]
        profiles[variant] = {name: np.mean([table[name] for table in tables], axis=0) for name in tables[0]}
    return profiles


def _terms(comparison: Comparison, profiles: dict[str, plots.Table]) -> Image.Image:
    curves = {variant: (table["t"], table["kl"]) for variant, table in profiles.items()}
    label = f"$L_{{t-1}}$ ({comparison.total})"
    return _plot(comparison, "KL terms by timestep", "t", label, curves, lambda axes: axes.set_yscale("log"))


def _rate_distortion(comparison: Comparison, profiles: dict[str, plots.Table]) -> Image.Image:
    curves = {variant: (table["rate"], table["rmse"]) for variant, table in profiles.items()}
    label = f"rate ({comparison.total})"

    def finish(axes: "Axes") -> None:
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)

    return _plot(comparison, "Rate-distortion curve", label, r"RMSE of $\hat x_0$", curves, finish)


def gradient_figure(comparison: Comparison) -> Image.Image:
    """Plots signal-to-noise ratio, optimal density of t and direction of the variants' gradients by timestep."""
    measured = {
        variant.name: (number, variant, comparison.results[variant.name][0].gradients)
        for number, variant in enumerate(comparison.plan.variants)
        if variant.name in comparison.results
    }
    weights = {name: variant.weight for name, (_, variant, _) in measured.items()}

    def draw(figure: "Figure") -> None:
        ratio, density, direction = figure.subplots(1, 3)
        _, first, of_first = next(iter(measured.values()))
        for name, (number, variant, found) in measured.items():
            if found is None:
                continue
            style = {**style_of(number), "label": name}
            schedule = variant.module.denoiser.schedule
            ratio.plot(schedule.log_snr(found.t), found.signal / found.variance.sqrt(), **style)
            optimal = found.optimal_density(weights[name]) * len(weights[name])
            density.plot(schedule.log_snr(torch.arange(2, len(optimal) + 2)), optimal, **style)
            if of_first is not None and same_schedule(variant, first):
                cosine = of_first.cosine_by_timestep(weights[name])
                direction.plot(schedule.log_snr(of_first.t), cosine, marker="o", markersize=4, **style)
        ratio.set(title="Signal / noise of one image", ylim=(0, None))
        density.set(title="Optimal density / uniform", yscale="log", ylim=(1e-3, None))
        density.axhline(1, color="black", linewidth=1)
        direction.set(title=f"Cosine, at the weights of {first.name}", ylim=(-1.05, 1.05))
        direction.axhline(0, color="black", linewidth=1)
        for axes in (ratio, density, direction):
            axes.set_xlabel(LOG_SNR)
            axes.xaxis.set_inverted(True)
        handles, labels = density.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))

    return plots.render(draw, (15, 5))


def sample_grid(run: Run) -> Image.Image | None:
    """Returns the picture of the samples of a run; None if they are not sequences, images or volumes."""
    predictions = run.files.predictions
    with np.load(predictions / "samples.npz") as file:
        samples = torch.from_numpy(file["arr_0"])
    data = DataSpec.from_state(load_checkpoint(run.checkpoint)[STATE_KEY]["data"])
    levels = data.levels or 256
    if list(predictions.glob("*.png")):  # [N, H, W, C] in the range of their type
        samples, levels = samples.permute(0, 3, 1, 2), 256 if samples.dtype == torch.uint8 else levels
    if samples.ndim - 2 not in DRAWN_DIMS:
        return None
    scaled = data.standardized(samples) if data.real_valued else to_float(samples, levels)
    grid, _ = draw_samples(scaled, GRID_COLUMNS, levels, data.standardization)
    zoom = max(1, round(GRID_WIDTH / grid.width))
    return grid.resize((grid.width * zoom, grid.height * zoom), Image.Resampling.NEAREST)


def plot_audit(result: Audit) -> Image.Image:
    """Plots the relative difference of both forms against t for each precision; differences of 0 are drawn at 1e-18."""

    def draw(axes: "Axes") -> None:
        for i, name in enumerate(result.values):
            # A logarithmic axis has no 0.
            values, gradients = (x[name].clamp(min=1e-18).numpy() for x in (result.values, result.gradients))
            t = np.arange(2, len(values) + 2)
            color = style_of(i)["color"]
            axes.plot(t, values, color=color, linewidth=1.5, label=f"{name}, values")
            axes.plot(t, gradients, color=color, linewidth=1, linestyle=":", label=f"{name}, gradients")
        axes.axhline(ALLOWED, color="black", linewidth=1, linestyle="--")
        axes.set_yscale("log")

    return plots.plot("Difference of both forms", "t", "relative difference", draw)
