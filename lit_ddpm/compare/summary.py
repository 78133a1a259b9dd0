"""The results of a comparison in a sentence or a row for each variant."""

import math

from lit_ddpm.compare.comparison import Comparison, is_bound, is_larger_better, text_of
from lit_ddpm.compare.measurement import Measurement


def summary(comparison: Comparison) -> dict[str, str]:
    """Returns a sentence for each variant: its total and each FID, with the distance to the best variant."""
    columns = comparison.measurements()
    names = [comparison.total, *(name for name in columns if name.startswith("fid"))]
    sentences = {}
    for variant in comparison.results:
        parts = [_place(name, columns[name], variant, comparison) for name in names if variant in columns[name]]
        sentences[variant] = "; ".join(parts) + "."
    return sentences


def _place(name: str, values: dict[str, Measurement], variant: str, comparison: Comparison) -> str:
    """Returns the value of a variant and its paired difference to the best variant, or of the best one to the next."""
    text = f"{name} {values[variant].mean:.4g}"
    order = sorted(values, key=lambda other: values[other].mean, reverse=is_larger_better(name))
    order = [other for other in order if not math.isnan(values[other].mean)]
    if len(order) < 2 or variant not in order:
        return text
    if variant == order[0]:
        significant = variant in comparison.leaders(name, values)
        difference = values[order[1]] - values[variant]
        won = "the best" if significant or math.isnan(difference.error) else "the lowest"
        return f"{text}, {won}, {text_of(difference)} ahead of {order[1]}"
    return f"{text}, {text_of(values[variant] - values[order[0]])} behind {order[0]}"


def objective_sentences(comparison: Comparison) -> dict[str, str]:
    """Returns for each variant whether its objective is a bound."""
    sentences = {}
    for variant, (_, factor) in comparison.factors().items():
        if bool((factor.diff().abs() <= 1e-6 * factor[:-1]).all()):
            sentences[variant] = "the bound itself, up to a constant factor"
        elif is_bound(factor):
            sentences[variant] = "a bound of images with noise added: its factor does not increase with log SNR"
        else:
            sentences[variant] = "not a bound: its factor increases with log SNR in places"
    return sentences


def gradient_rows(comparison: Comparison) -> list[list[str]]:
    """Returns a header, and a row for each variant with measured gradients.

    A row has the norm of the mean gradient of the variant's own objective at its final weights, its standard deviation
    for one image at a uniform t, and the saving of the optimal density, see `GradientStatistics.saving`.
    """
    rows = [["trained with", "signal", "noise", "saving"]]
    for variant in comparison.plan.variants:
        results = comparison.results.get(variant.name)
        if results is not None and (found := results[0].gradients) is not None:
            weight = variant.weight
            signal = math.sqrt(found.square_of_mean(weight))
            rows.append([variant.name, f"{signal:.2g}", f"{found.noise(weight):.2g}", f"{found.saving(weight):.1f}"])
    return rows
