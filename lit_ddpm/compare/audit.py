"""An audit of the equivalence of both forms of the KL, for a schedule and a parametrization at every t >= 2."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.diffusion.denoiser import Denoiser, Prediction
from lit_ddpm.diffusion.gaussian import q_marginal
from lit_ddpm.diffusion.objective import kl_forms

ALLOWED = 1e-10
CHUNK = 256
ERROR = 0.1  # of the network's output; without an error both forms are 0


@dataclass(frozen=True)
class Audit:
    """The difference of the full KL and the weighted x0-MSE at t = 2..T, relative to the latter.

    Both dicts contain a tensor ``[T - 1]`` for each precision of the network's output.
    """

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]  # with respect to the output, by Euclidean norm

    def largest(self, precision: str) -> float:
        """Returns the largest relative difference, of values or gradients, over all t."""
        return float(torch.maximum(self.values[precision], self.gradients[precision]).max())

    def check(self) -> None:
        """Raises an ArithmeticError if the forms differ in float64 by more than `ALLOWED`."""
        if not (largest := self.largest("float64")) <= ALLOWED:
            worst = int(torch.maximum(self.values["float64"], self.gradients["float64"]).argmax()) + 2
            raise ArithmeticError(
                f"the two forms of the KL differ by {largest:.1e} at t = {worst}, and {ALLOWED:g} is allowed in "
                "float64: the schedule or the parametrization violates the equivalence."
            )

    def __str__(self) -> str:
        """Returns the audit in one line."""
        parts = ", ".join(f"{self.largest(precision):.1e} in {precision}" for precision in self.values)
        return f"largest relative difference of the two forms over t = 2..{len(self.values['float64']) + 1}: {parts}"


def audit(
    denoiser: Denoiser,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    image_shape: Sequence[int] = (1, 8, 8),
    seed: int = 0,
) -> Audit:
    """Compares values and gradients of both forms on random images and noise, for an output with an error of 0.1.

    The network is not called. A learned variance is replaced by that of the posterior, since the equivalence holds for
    a given variance only.

    Args:
        denoiser: The schedule, parametrization and variance to audit.
        dtypes: The precisions of the network's output.
        image_shape: The shape of an image.
        seed: The seed of images and noise.
    """
    schedule, parametrization = denoiser.schedule, denoiser.parametrization
    variance = "posterior" if denoiser.variance == "learned" else denoiser.training_variance
    bare = Denoiser(nn.Identity(), schedule, parametrization, variance)
    generator = keyed_generator("audit", seed)
    values: dict[str, list[Tensor]] = {str(dtype).removeprefix("torch."): [] for dtype in dtypes}
    gradients: dict[str, list[Tensor]] = {name: [] for name in values}
    for t in torch.split(torch.arange(2, schedule.num_steps + 1), CHUNK):
        shape = (len(t), *image_shape)
        images = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        noise, error = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
        for name, dtype in zip(values, dtypes, strict=True):
            working = torch.promote_types(dtype, torch.float32)  # the dtype that the denoiser promotes an output to
            x_0, eps = images.to(working), noise.to(working)
            x_t = q_marginal(schedule, x_0, t).sample(eps)
            target = parametrization.target(schedule, x_0, eps, t)
            output = (target + ERROR * error.to(target)).to(dtype).requires_grad_()
            x0_hat = parametrization.x0_hat(schedule, output.to(working), x_t, t)
            pred = Prediction(x_0=x_0, x_t=x_t, t=t, eps=eps, output=output, x0_hat=x0_hat)
            kl, kl_from_x0_mse, _ = kl_forms(bare, pred)
            (kl_gradient,) = torch.autograd.grad(kl.sum(), output, retain_graph=True)
            (mse_gradient,) = torch.autograd.grad(kl_from_x0_mse.sum(), output)
            gap = (kl_gradient.double() - mse_gradient.double()).flatten(1).norm(dim=1)
            gradients[name].append(gap / mse_gradient.double().flatten(1).norm(dim=1))
            values[name].append(((kl - kl_from_x0_mse).abs() / kl_from_x0_mse.abs()).detach().double())
    return Audit(
        {name: torch.cat(parts) for name, parts in values.items()},
        {name: torch.cat(parts) for name, parts in gradients.items()},
    )
