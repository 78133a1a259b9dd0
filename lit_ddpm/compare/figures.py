"""The figures of a comparison."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from lit_ddpm.callbacks import plots
from lit_ddpm.callbacks.pictures import DRAWN_DIMS, draw_samples
from lit_ddpm.compare.audit import ALLOWED, Audit
from lit_ddpm.compare.comparison import Comparison, same_schedule
from lit_ddpm.compare.runs import Run
from lit_ddpm.data.pixels import Standardization, to_float
from lit_ddpm.diffusion.objective import weight_on_x0_mse
from lit_ddpm.training.checkpoint import STATE_KEY, load_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Captioned = tuple[str, Image.Image]

GRID_WIDTH = 1024  # of a sample grid of 16 columns, in pixels
GRID_COLUMNS = 16


def color(number: int) -> str:
    """Returns the color of an arm by its number."""
    return plots.PALETTE[number % len(plots.PALETTE)]


def line_style(number: int) -> str:
    """Returns the line style of an arm by its number, so that curves that coincide remain visible."""
    return ("-", "--", ":", "-.")[number % 4]


def figures(comparison: Comparison) -> dict[str, Captioned]:
    """Returns the figures with a line each that says what to see, by file name."""
    found = {
        "factors": (
            "What each objective weights, relative to the bound: a curve that rises to the right gives fine detail "
            "less weight than the bound does.",
            _factors(comparison),
        ),
        "profile": (
            "Where the bits are: the area under a curve is the diffusion term. The arms differ where the curves do.",
            _profile(comparison),
        ),
        "rate_distortion": (
            "How much of the image is known after how many bits: lower is better at the same rate.",
            _rate_distortion(comparison),
        ),
    }
    if any(results[0].gradients is not None for results in comparison.results.values()):
        found["gradients"] = (
            "Left: signal and noise of one image's gradient. Middle: the timesteps that an objective should draw "
            "more often than uniformly. Right: at the weights of the first arm, the timesteps whose loss a step of "
            "each objective lowers (positive) or raises (negative).",
            gradient_figure(comparison),
        )
    return found


def _curves(comparison: Comparison, draw: "Callable[[Axes, int, str], object]") -> "Callable[[Axes], None]":
    def draw_all(axes: "Axes") -> None:
        for number, arm in enumerate(comparison.arms):
            if arm.name in comparison.results:
                draw(axes, number, arm.name)

    return draw_all


def _factors(comparison: Comparison) -> Image.Image:
    factors = comparison.factors()

    def draw(axes: "Axes", number: int, arm: str) -> None:
        log_snr, factor = factors[arm]
        axes.plot(log_snr, factor, color=color(number), linestyle=line_style(number), label=arm)
        axes.set_yscale("log")
        axes.set_ylim(max(float(min(f.min() for _, f in factors.values())) / 2, 1e-5), 2)
        axes.xaxis.set_inverted(True)

    title = "Factor of the objective on the bound"
    return plots.plot(
        title, "log SNR (noise increases to the right)", "factor / its largest", _curves(comparison, draw)
    )


def _mean_table(comparison: Comparison, arm: str) -> plots.Table:
    """Returns the columns of the profile of an arm, averaged over its seeds."""
    results = comparison.results[arm]
    unused = [0.0] * len(results[0].report.profile)
    tables = [plots.profile_table(result.report, (unused, unused), unused, unused) for result in results]
    return {name: np.mean([table[name] for table in tables], axis=0) for name in tables[0]}


def _profile(comparison: Comparison) -> Image.Image:
    def draw(axes: "Axes", number: int, arm: str) -> None:
        table = _mean_table(comparison, arm)
        axes.plot(table["t"], table["kl"], color=color(number), linestyle=line_style(number), label=arm)
        axes.set_yscale("log")

    return plots.plot("KL terms by timestep", "t", f"$L_{{t-1}}$ ({comparison.total})", _curves(comparison, draw))


def _rate_distortion(comparison: Comparison) -> Image.Image:
    def draw(axes: "Axes", number: int, arm: str) -> None:
        table = _mean_table(comparison, arm)
        axes.plot(table["rate"], table["rmse"], color=color(number), linestyle=line_style(number), label=arm)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)

    return plots.plot(
        "Rate-distortion curve", f"rate ({comparison.total})", r"RMSE of $\hat x_0$", _curves(comparison, draw)
    )


def gradient_figure(comparison: Comparison) -> Image.Image:
    """Plots signal-to-noise ratio, optimal density of t and direction of the arms' gradients by timestep."""
    measured = {
        arm.name: (number, arm, comparison.results[arm.name][0].gradients)
        for number, arm in enumerate(comparison.arms)
        if arm.name in comparison.results
    }
    weights = {
        name: weight_on_x0_mse(arm.module.objective, arm.module.denoiser) for name, (_, arm, _) in measured.items()
    }

    def draw(figure: "Figure") -> None:
        ratio, density, direction = figure.subplots(1, 3)
        _, first, of_first = next(iter(measured.values()))
        for name, (number, arm, found) in measured.items():
            if found is None:
                continue
            style = {"color": color(number), "linestyle": line_style(number), "label": name}
            schedule = arm.module.denoiser.schedule
            signal = found.inner.diagonal().clamp(min=0).sqrt()
            ratio.plot(schedule.log_snr(found.t), signal / found.variance.sqrt(), **style)
            optimal = found.optimal_density(weights[name]) * len(weights[name])
            density.plot(schedule.log_snr(torch.arange(2, len(optimal) + 2)), optimal, **style)
            if of_first is not None and same_schedule(arm, first):
                cosine = of_first.cosine_by_timestep(weights[name])
                direction.plot(schedule.log_snr(of_first.t), cosine, marker="o", markersize=4, **style)
        ratio.set(title="Signal / noise of one image", ylim=(0, None))
        density.set(title="Optimal density / uniform", yscale="log", ylim=(1e-3, None))
        density.axhline(1, color="black", linewidth=1)
        direction.set(title=f"Cosine, at the weights of {first.name}", ylim=(-1.05, 1.05))
        direction.axhline(0, color="black", linewidth=1)
        for axes in (ratio, density, direction):
            axes.set_xlabel("log SNR (noise increases to the right)")
            axes.xaxis.set_inverted(True)
        handles, labels = density.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))

    return plots.render(draw, (15, 5))


def sample_grid(run: Run) -> Image.Image | None:
    """Returns the picture of the samples of a run; None if they are not sequences, images or volumes."""
    predictions = run.files.predictions
    with np.load(predictions / "samples.npz") as file:
        samples = torch.from_numpy(file["arr_0"])
    state = load_checkpoint(run.checkpoint)[STATE_KEY]
    levels, values = state["data_levels"] or 256, state["standardization"]
    if list(predictions.glob("*.png")):  # [N, H, W, C] in the range of their type
        samples, levels = samples.permute(0, 3, 1, 2), 256 if samples.dtype == torch.uint8 else levels
    if samples.ndim - 2 not in DRAWN_DIMS:
        return None
    standardization = None if values is None else Standardization(**values)
    scaled = to_float(samples, levels) if standardization is None else standardization.apply(samples)
    grid, _ = draw_samples(scaled, GRID_COLUMNS, levels, standardization)
    zoom = max(1, round(GRID_WIDTH / grid.width))
    return grid.resize((grid.width * zoom, grid.height * zoom), Image.Resampling.NEAREST)


def plot_audit(result: Audit) -> Image.Image:
    """Plots the relative difference of both forms against t for each precision; differences of 0 are drawn at 1e-18."""

    def draw(axes: "Axes") -> None:
        for i, name in enumerate(result.values):
            # A logarithmic axis has no 0.
            values, gradients = (x[name].clamp(min=1e-18).numpy() for x in (result.values, result.gradients))
            t = np.arange(2, len(values) + 2)
            axes.plot(t, values, color=color(i), linewidth=1.5, label=f"{name}, values")
            axes.plot(t, gradients, color=color(i), linewidth=1, linestyle=":", label=f"{name}, gradients")
        axes.axhline(ALLOWED, color="black", linewidth=1, linestyle="--")
        axes.set_yscale("log")

    return plots.plot("Difference of both forms", "t", "relative difference", draw)
