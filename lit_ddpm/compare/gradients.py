"""What the gradients of the arms say: a table."""

import math

from lit_ddpm.compare.comparison import Comparison, same_schedule
from lit_ddpm.diffusion.objective import weight_on_x0_mse


def gradient_rows(comparison: Comparison) -> list[list[str]]:
    """Returns a header, and a row for each arm with measured gradients.

    A row has the signal, the noise of one image, the saving of the optimal density, and the cosines with the gradients
    of all objectives, for the gradient of the arm's own objective at its final weights. Where the noise exceeds the
    gradient there is no cosine.
    """
    weights = {arm.name: weight_on_x0_mse(arm.module.objective, arm.module.denoiser) for arm in comparison.arms}
    rows = [["trained with", "signal", "noise", "saving", *(arm.name for arm in comparison.arms)]]
    for arm in comparison.arms:
        results = comparison.results.get(arm.name)
        if results is None or (found := results[0].gradients) is None:
            continue
        weight = weights[arm.name]
        signal = math.sqrt(found.square_of_mean(weight))
        cosines = [
            found.cosine(weight, weights[other.name]) if same_schedule(arm, other) else math.nan
            for other in comparison.arms
        ]
        numbers = f"{signal:.2g}", f"{found.noise(weight):.2g}", f"{found.saving(weight):.2f}"
        rows.append([arm.name, *numbers, *("—" if math.isnan(cosine) else f"{cosine:.2f}" for cosine in cosines)])
    return rows
