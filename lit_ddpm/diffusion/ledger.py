"""The ledger: sums of the bound over the images of a dataset."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lit_ddpm.diffusion.variance import smooth_x0_mse
from lit_ddpm.likelihood.bound import DECODER_SCALES, Bound, noise_variance
from lit_ddpm.likelihood.report import LIKELIHOOD, TERMS, Entry, Report


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

    def report(
        self, given: tuple[str, ...] = (), kl_weight: Tensor | None = None, num_available: int | None = None
    ) -> Report:
        """Returns the report over all images, for a model under the conditions `given`.

        They are a random part of `num_available` images, if that is not None.

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
            num_available=num_available,
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
