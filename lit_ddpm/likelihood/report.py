"""The report of a bound, term by term, with standard errors and a baseline."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import number_of, write_json
from lit_ddpm._internal.tables import text_table

if TYPE_CHECKING:
    from lit_ddpm.likelihood.bound import Bound

TERMS = ("prior", "diffusion", "reconstruction", "total")

LIKELIHOOD = ("flow", "dequantization", "flow_reconstruction", "likelihood", "gap", "solver_error")
"""The columns of an exact likelihood: its terms, their total, the bound minus it, and what half the steps add."""


@dataclass(frozen=True)
class Entry:
    """A term of the bound, per dimension, in the unit of the report."""

    value: float  # the mean over the images
    se_images: float  # the standard error over the choice of images; it includes the noise of each estimate
    # The standard error over the noise with the images fixed. The reconstruction has one draw for each image, which
    # cannot separate the two, so `se_images` is the upper limit.
    se_noise: float


@dataclass(frozen=True)
class Report:
    """The bound of a dataset. `print` shows it as a table."""

    unit: str  # "bits/dim", or "nats/dim" for real-valued data
    terms: dict[str, Entry]  # prior, diffusion, reconstruction and total
    baseline: Entry | None  # the code length of the same images under an independent histogram for each pixel
    num_images: int
    num_calls: int  # network calls for each image
    profile: list[float]  # each KL term for t = 2..T; they sum to the diffusion term
    visits: list[int]  # network calls at each t = 1..T
    kl: list[float | None]  # the mean of each KL term over those calls, t = 2..T; None without a call
    x0_mse: list[float | None]  # the mean of |x0_hat - x_0|^2 per dimension, t = 1..T; None without a call
    conditioned_on: tuple[str, ...] = ()  # the conditions of the model, such as "label"
    num_available: int | None = None  # images of the split, if a random part of them was measured
    # What the network's x0-MSE at each t implies for the total; None for an estimate.
    best_variance: float | None = None  # with the best variance at every t
    infinite_steps: tuple[float, float] | None = None  # with ever finer steps: lower and upper limit
    likelihood: dict[str, Entry] | None = None  # the columns LIKELIHOOD, if the exact likelihood was measured

    @classmethod
    def of(cls, bound: "Bound", num_available: int | None = None) -> "Report":
        """Returns the report of a bound, whose images are a random part of `num_available` if that is not None.

        A bound of all T timesteps gives two further totals, computed from the x0-MSE m_t of its images:

        - With the best variance, ``sigma_q^2 + c_0^2 m_t``, the KL is ``ln(1 + 2 w_t m_t) / 2`` per dimension (Bao et
          al. 2022, "Analytic-DPM"), and the decoder has the best of the `DECODER_SCALES`. As both are chosen for the
          same images, the total is slightly too low.
        - With ever finer steps, the KL terms become the integral of ``m d SNR / 2`` per dimension (Kingma et al. 2021,
          eq. 15). It lies between its Riemann sums ``sum w_t m_(t-1)`` and ``sum w_t m_t``; the second is the diffusion
          term with the posterior's variance. Their mean, the trapezoidal rule, is the estimate.
        """
        count, scale = len(bound.index), bound.scale
        if repeated := count - len(torch.unique(bound.index)):
            needed = "pass the index of each image in its dataset to variational_bound."
            raise InputError(f"{repeated} images have the index of another one, and so its noise: {needed}")

        def entry(values: Tensor, se_noise: float = 0.0) -> Entry:
            se_images = float(values.std()) / math.sqrt(count) * scale if count > 1 else math.nan
            return Entry(float(values.mean()) * scale, se_images, se_noise)

        terms = {name: entry(getattr(bound, name)) for name in TERMS}
        noise = {"diffusion": math.sqrt(bound.noise_variance() / count) * scale}
        noise["reconstruction"] = terms["reconstruction"].se_images
        noise["total"] = math.hypot(*noise.values())
        best_variance, infinite_steps = None, None
        if bound.num_calls == bound.num_steps:
            w, m = bound.kl_weight[1:], bound.x0_mse()
            diffusion = torch.stack([torch.log1p(2 * w * m[1:]) / 2, w * m[:-1], w * m[1:]]).sum(1)
            rest = terms["prior"].value + terms["reconstruction"].value
            best_variance, *limits = (diffusion * scale * bound.dims + rest).tolist()
            reconstruction = float(bound.reconstruction_by_scale.min()) / count * scale
            best_variance += min(reconstruction - terms["reconstruction"].value, 0)
            infinite_steps = (limits[0], limits[1])
        columns = {name: entry(values) for name, values in bound.columns.items()}
        return cls(
            unit="bits/dim" if bound.discrete else "nats/dim",
            terms={name: replace(value, se_noise=noise.get(name, 0.0)) for name, value in terms.items()},
            best_variance=best_variance,
            infinite_steps=infinite_steps,
            likelihood={name: columns[name] for name in LIKELIHOOD} if LIKELIHOOD[0] in columns else None,
            baseline=columns.get("baseline"),
            num_images=count,
            num_calls=bound.num_calls,
            profile=(bound.profile * scale).tolist(),
            visits=[int(n) for n in bound.visits],
            kl=_means(bound.kl * scale, bound.visits[1:]),
            x0_mse=_means(bound.squared_error, bound.visits),
            conditioned_on=bound.conditioned_on,
            num_available=num_available,
        )

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
        if unknown := content.keys() - {each.name for each in fields(cls)}:
            raise InputError(f"{path} is a report of another version of lit_ddpm: it has {', '.join(sorted(unknown))}.")
        content["terms"] = {name: _entry(entry) for name, entry in content["terms"].items()}
        content["baseline"] = _entry(content["baseline"]) if content["baseline"] is not None else None
        content["profile"] = [number_of(value) for value in content["profile"]]
        content["conditioned_on"] = tuple(content.get("conditioned_on", ()))
        if content.get("infinite_steps") is not None:
            content["infinite_steps"] = tuple(content["infinite_steps"])
        if content.get("likelihood") is not None:
            content["likelihood"] = {name: _entry(entry) for name, entry in content["likelihood"].items()}
        return cls(**content)

    def __str__(self) -> str:
        """Returns the report as a table for a terminal."""
        rows = [["term", self.unit, "± images", "± noise"]]
        rows += [[*_row(name, self.terms[name]), _se(self.terms[name].se_noise)] for name in TERMS]
        lines = _lines(rows)
        lines.insert(-1, "-" * len(lines[0]))
        if self.best_variance is not None:
            lines += _lines([["with the best variance", f"{self.best_variance:.4f}"]])
        if self.infinite_steps is not None:
            low, high = self.infinite_steps
            (line,) = _lines([["with infinite steps", f"{self.limit:.4f}"]])
            lines.append(f"{line}   between {low:.4f} and {high:.4f}")
        if self.likelihood is not None:
            lines += self._likelihood_rows(self.likelihood)
        if self.baseline is not None:
            lines += _lines([_row("per-pixel histogram", self.baseline)])
        lines.append(f"{self._images()}, {self._calls()} an image")
        if self.conditioned_on:
            lines.append(f"the bound of a conditional model: x_0 given {' and '.join(self.conditioned_on)}")
        return "\n".join(lines)

    def _images(self) -> str:
        if self.num_available is None:
            return f"{self.num_images:,} images"
        return f"{self.num_images:,} random images of {self.num_available:,}"

    def _calls(self) -> str:
        estimated = self.num_calls < len(self.visits)
        return (
            f"{self.num_calls:,} random timesteps of {len(self.visits):,}"
            if estimated
            else (f"{self.num_calls:,} network calls")
        )

    @staticmethod
    def _likelihood_rows(entries: dict[str, Entry]) -> list[str]:
        names = {
            "flow": "flow, -log p(x_1)",
            "dequantization": "dequantization",
            "flow_reconstruction": "reconstruction",
            "likelihood": "exact likelihood",
            "gap": "bound minus likelihood",
        }
        rows = _lines([_row(label, entries[name]) for name, label in names.items()])
        rows.insert(3, "-" * len(rows[0]))
        if not math.isnan(error := entries["solver_error"].value):
            rows[-1] += f"   with half the steps of the solver {error:+.4f}"
        return ["", *rows, ""]


def _means(totals: Tensor, counts: Tensor) -> list[float | None]:
    return [float(total / count) if count else None for total, count in zip(totals, counts, strict=True)]


def _entry(content: dict[str, float | None]) -> Entry:
    return Entry(**{name: number_of(value) for name, value in content.items()})


def _row(label: str, entry: Entry) -> list[str]:
    return [label, f"{entry.value:.4f}", f"{entry.se_images:.4f}"]


def _lines(rows: list[list[str]]) -> list[str]:
    return text_table(rows, widths=(22, 10, 9, 9)).splitlines()


def _se(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4f}"
