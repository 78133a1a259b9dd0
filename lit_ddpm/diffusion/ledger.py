"""The ledger: the bound of a dataset, term by term, with standard errors and a baseline."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lit_ddpm._internal.files import number_of, write_json
from lit_ddpm.diffusion.bound import DECODER_SCALES, Bound, noise_variance
from lit_ddpm.diffusion.variance import smooth_x0_mse

TERMS = ("prior", "diffusion", "reconstruction", "total")

LIKELIHOOD = ("flow", "dequantization", "flow_reconstruction", "likelihood", "gap", "solver_error")
"""The columns of an exact likelihood: its terms, their total, the bound minus it, and what half the steps change."""


@dataclass(frozen=True)
class Entry:
    """A term of the ledger, per dimension, in the unit of the report."""

    value: float  # the mean over the images
    se_images: float  # the standard error over the choice of images; it includes the noise of each estimate
    # The standard error over the noise with the images fixed. The reconstruction has one draw for each image, which
    # cannot separate the two, so `se_images` is the upper limit.
    se_noise: float


@dataclass(frozen=True)
class Report:
    """The bound of a dataset."""

    unit: str  # "bits/dim", or "nats/dim" for real-valued data
    terms: dict[str, Entry]  # prior, diffusion, reconstruction and total
    baseline: Entry | None  # the code length of the same images under an independent histogram for each pixel
    num_images: int
    num_calls: int  # network calls for each image
    profile: list[float]  # each KL term for t = 2..T; they sum to the diffusion term
    visits: list[int]  # network calls at each t = 1..T
    kl: list[float | None]  # the mean of each KL term over those calls, t = 2..T; None without a call
    x0_mse: list[float | None]  # the mean of |x0_hat - x_0|^2 per dimension, t = 1..T; None without a call
    given: tuple[str, ...] = ()  # the conditions of the model, such as "label": the bound is that of p(x_0 | given)
    # What the network's x0-MSE at each t implies for the total; None for an estimate.
    best_variance: float | None = None  # with the best variance at every t
    infinite_steps: tuple[float, float] | None = None  # with ever finer steps: lower and upper limit
    likelihood: dict[str, Entry] | None = None  # the columns LIKELIHOOD, if the exact likelihood was measured

    @property
    def limit(self) -> float | None:
        """The estimate of the total with ever finer steps; None for an estimate of the bound."""
        return None if self.infinite_steps is None else sum(self.infinite_steps) / 2

    def key(self, split: str) -> str:
        """Returns the key of the total in the logs."""
        return f"{split}/bpd" if self.unit == "bits/dim" else f"{split}/nats_per_dim"

    def metrics(self, split: str) -> dict[str, float]:
        """Returns the terms and their standard errors by the keys of the logs."""
        total_key = self.key(split)
        values: dict[str, float] = {}
        for term, entry in self.terms.items():
            key = total_key if term == "total" else f"{total_key}_{term}"
            values |= {key: entry.value, f"{key}_se_images": entry.se_images}
            if term != "prior":  # it is exact
                values[f"{key}_se_noise"] = entry.se_noise
        if self.best_variance is not None:
            values[f"{total_key}_best_variance"] = self.best_variance
        if self.limit is not None:
            values[f"{total_key}_infinite_steps"] = self.limit
        if self.likelihood is not None:
            for name in ("likelihood", "gap"):
                entry = self.likelihood[name]
                values |= {f"{total_key}_{name}": entry.value, f"{total_key}_{name}_se_images": entry.se_images}
        if self.baseline is not None:
            values[f"{total_key}_histogram"] = self.baseline.value
        return values

    def save(self, path: Path) -> None:
        """Writes the report as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Reads a file of `save`."""
        content = json.loads(path.read_text())
        content["terms"] = {name: _entry(entry) for name, entry in content["terms"].items()}
        content["baseline"] = _entry(content["baseline"]) if content["baseline"] is not None else None
        content["profile"] = [number_of(value) for value in content["profile"]]
        content["given"] = tuple(content.get("given", ()))
        if content.get("infinite_steps") is not None:
            content["infinite_steps"] = tuple(content["infinite_steps"])
        if content.get("likelihood") is not None:
            content["likelihood"] = {name: _entry(entry) for name, entry in content["likelihood"].items()}
        return cls(**content)

    def table(self) -> str:
        """Returns the report as a table for a terminal."""
        rows = [(name, self.terms[name]) for name in TERMS]
        lines = [f"{'term':<24}{self.unit:>10}{'± images':>11}{'± noise':>11}"]
        lines += [f"{name:<24}{e.value:>10.4f}{e.se_images:>11.4f}{_se(e.se_noise):>11}" for name, e in rows]
        lines.insert(-1, "-" * len(lines[0]))
        if self.best_variance is not None:
            lines.append(f"{'with the best variance':<24}{self.best_variance:>10.4f}")
        if self.infinite_steps is not None:
            low, high = self.infinite_steps
            lines.append(f"{'with infinite steps':<24}{self.limit:>10.4f}   between {low:.4f} and {high:.4f}")
        if self.likelihood is not None:
            lines += self._likelihood_rows(self.likelihood)
        if self.baseline is not None:
            lines.append(f"{'per-pixel histogram':<24}{self.baseline.value:>10.4f}{self.baseline.se_images:>11.4f}")
        lines.append(f"{self.num_images:,} images, {self.num_calls:,} network calls an image")
        if self.given:
            lines.append(f"the bound of a conditional model: x_0 given {' and '.join(self.given)}")
        return "\n".join(lines)

    @staticmethod
    def _likelihood_rows(entries: dict[str, Entry]) -> list[str]:
        names = {
            "flow": "flow, -log p(x_1)",
            "dequantization": "dequantization",
            "flow_reconstruction": "reconstruction",
            "likelihood": "exact likelihood",
            "gap": "bound minus likelihood",
        }
        rows = [
            f"{label:<24}{entries[name].value:>10.4f}{entries[name].se_images:>11.4f}" for name, label in names.items()
        ]
        rows.insert(3, "-" * len(rows[0]))
        rows[-1] += f"   with half the steps of the solver {-entries['solver_error'].value:+.4f}"
        return ["", *rows, ""]


def _entry(content: dict[str, float | None]) -> Entry:
    return Entry(**{name: number_of(value) for name, value in content.items()})


def _se(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4f}"


class Ledger:
    """Sums over images, in float64 on the CPU; the sums of several ranks add up to those of one.

    The schedule has `num_steps` steps T, and each image takes `num_calls` network calls. A `discrete` decoder gives
    probabilities, and the unit is bits. An `exact` ledger has the columns of the exact likelihood.
    """

    def __init__(self, num_steps: int, num_calls: int, discrete: bool = True, exact: bool = False) -> None:
        self.discrete = discrete
        self.num_calls = num_calls
        self.columns = (*TERMS, "baseline", *(LIKELIHOOD if exact else ()))
        shapes: dict[str, tuple[int, ...]] = {
            "count": (),
            "dims": (),
            "moments": (2, len(self.columns)),  # sums and sums of squares
            "differences": (num_calls // 2 if num_calls > 2 else 0,),
            "squared_differences": (),
            "profile": (num_steps - 1,),
            "second_moment": (num_steps - 1,),
            "visits": (num_steps,),
            "kl": (num_steps - 1,),
            "squared_error": (num_steps,),
            "reconstruction_by_scale": DECODER_SCALES.shape,
        }
        self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def update(self, bound: Bound, **columns: Tensor) -> None:
        """Adds the images of `bound`, and their values of further `columns` in nats, ``[B]``; 0 if not given.

        The ``baseline`` is their code length under another model.
        """
        count = len(bound.prior)
        columns |= {name: getattr(bound, name) for name in TERMS}
        values = torch.stack([columns.get(name, torch.zeros_like(bound.prior)).double() for name in self.columns])
        new = {
            "count": torch.tensor(count),
            "dims": torch.tensor(count * bound.dims),
            "moments": torch.stack([values.sum(1), (values**2).sum(1)]),
        }
        for name in ("differences", "squared_differences", "profile", "second_moment"):  # averages over the images
            new[name] = getattr(bound, name) * count
        for name in ("visits", "kl", "squared_error", "reconstruction_by_scale"):
            new[name] = getattr(bound, name)
        self._sums = {name: total + new[name] for name, total in self._sums.items()}

    def reduce(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Applies `reduce` to each sum, such as a sum over ranks."""
        self._sums = {name: reduce(value).cpu() for name, value in self._sums.items()}

    @property
    def scale(self) -> float:
        """The factor from nats an image to the unit of the report, per dimension."""
        dims = int(self._sums["dims"]) // int(self._sums["count"])
        return 1 / (dims * (math.log(2) if self.discrete else 1))

    def second_moment(self) -> Tensor:
        """Returns `Bound.second_moment` over all images, ``[T - 1]``."""
        return self._sums["second_moment"] / self._sums["count"]

    def x0_mse(self) -> Tensor:
        """Returns an estimate of the x0-MSE of the images at t = 1..T, ``[T]``; see `smooth_x0_mse`."""
        return smooth_x0_mse(self._sums["squared_error"], self._sums["visits"])

    def decoder_scale(self) -> float:
        """Returns the best of the `DECODER_SCALES` for the images."""
        return float(DECODER_SCALES[self._sums["reconstruction_by_scale"].argmin()])

    def report(self, given: tuple[str, ...] = (), kl_weight: Tensor | None = None) -> Report:
        """Returns the report over all images, for a model under the conditions `given`.

        With the `kl_weight` of the posterior variance, ``[T]`` for t = 1..T, an exact ledger contains two further
        totals, computed from the x0-MSE m_t of these images:

        - With the best variance, ``sigma_q^2 + c_0^2 m_t``, the KL is ``ln(1 + 2 w_t m_t) / 2`` per dimension (Bao et
          al. 2022, "Analytic-DPM"), and the decoder has the best of the `DECODER_SCALES`. As both are chosen for the
          same images, the total is slightly too low.
        - With ever finer steps, the KL terms become the integral of ``m d SNR / 2`` per dimension (Kingma et al. 2021,
          eq. 15). It lies between its Riemann sums ``sum w_t m_(t-1)`` and ``sum w_t m_t``; the second is the diffusion
          term with the posterior's variance. Their mean, the trapezoidal rule, is the estimate.

        Raises:
            ValueError: If there are no images.
        """
        sums, count = self._sums, int(self._sums["count"])
        if count == 0:
            raise ValueError("the ledger has no images: the validation or test split of the data is empty.")
        dims, scale = int(sums["dims"]) // count, self.scale

        def entry(total: float, total_of_squares: float) -> Entry:
            mean = total / count
            variance = max(total_of_squares / count - mean**2, 0.0)
            se_images = math.sqrt(variance / (count - 1)) * scale if count > 1 else math.nan
            return Entry(mean * scale, se_images, se_noise=0.0)

        entries = {name: entry(*m) for name, m in zip(self.columns, sums["moments"].T.tolist(), strict=True)}
        terms = {name: entries[name] for name in TERMS}
        variance = noise_variance(sums["differences"] / count, sums["squared_differences"] / count, count)
        noise = {"diffusion": math.sqrt(variance / count) * scale}
        noise["reconstruction"] = terms["reconstruction"].se_images
        noise["total"] = math.hypot(*noise.values())
        best_variance, infinite_steps = None, None
        if kl_weight is not None and self.num_calls == len(sums["visits"]):
            w, m = kl_weight[1:], self.x0_mse()
            diffusion = torch.stack([torch.log1p(2 * w * m[1:]) / 2, w * m[:-1], w * m[1:]]).sum(1) * scale * dims
            rest = terms["prior"].value + terms["reconstruction"].value
            best_variance, *limits = (diffusion + rest).tolist()
            reconstruction = float(sums["reconstruction_by_scale"].min()) / count * scale
            best_variance += min(reconstruction - terms["reconstruction"].value, 0)
            infinite_steps = (limits[0], limits[1])
        return Report(
            unit="bits/dim" if self.discrete else "nats/dim",
            terms={name: replace(value, se_noise=noise.get(name, 0.0)) for name, value in terms.items()},
            best_variance=best_variance,
            infinite_steps=infinite_steps,
            likelihood={name: entries[name] for name in LIKELIHOOD} if LIKELIHOOD[0] in entries else None,
            baseline=entries["baseline"] if entries["baseline"].value > 0 else None,
            num_images=count,
            num_calls=self.num_calls,
            profile=(sums["profile"] / count * scale).tolist(),
            visits=[int(n) for n in sums["visits"]],
            kl=_means(sums["kl"] * scale, sums["visits"][1:]),
            x0_mse=_means(sums["squared_error"], sums["visits"]),
            given=given,
        )


def _means(totals: Tensor, counts: Tensor) -> list[float | None]:
    return [float(total / count) if count else None for total, count in zip(totals, counts, strict=True)]


def histogram_nats(histogram: Tensor, x_0: Tensor) -> Tensor:
    """Returns the code length of images under an independent histogram for each pixel, in nats ``[B]`` on the CPU.

    The `histogram` has counts ``[levels, C, H, W]``, to which one is added; `x_0` is ``[B, C, H, W]`` on those levels.
    """
    counts = histogram.cpu().double() + 1
    level = ((x_0.cpu() + 1) / 2 * (len(counts) - 1)).round().long()
    return -(counts / counts.sum(0)).log().gather(0, level).flatten(1).sum(1)
