"""The bound of a validation or test split, on any number of ranks."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lit_ddpm._internal.checks import InputError
from lit_ddpm.data.protocols import HasHistogram
from lit_ddpm.diffusion.network import is_per_image
from lit_ddpm.likelihood.bound import Bound, histogram_nats
from lit_ddpm.likelihood.flow import FLOW_STEPS, check_flow, exact_likelihood
from lit_ddpm.likelihood.report import Report
from lit_ddpm.likelihood.size import PILOT_CALLS, PILOT_IMAGES, Size, random_order, smallest_test
from lit_ddpm.likelihood.variational import variational_bound
from lit_ddpm.training.distributed import gather_results

if TYPE_CHECKING:
    from lit_ddpm.training.module import DDPM

Split = Literal["val", "test"]

EVALUATION_SEED = 0
"""The seed of the bound's noise. It does not depend on the training seed, so all models are measured with one noise."""


@dataclass(eq=False)
class Evaluation:
    """The bound of a validation or test split: `begin`, then `update` for each batch, then `finish`.

    Each validation of a fit passes its second moments to the next, which then needs fewer calls for the same precision.
    A checkpoint contains those that its own validation began with, so that validating it again gives the same numbers,
    and those that it found, so that a resumed fit continues with the same numbers.

    Args:
        num_val_timesteps: Network calls for each image in validation; all T if None.
        num_images: The number of random images of the test split that a test measures; all if None.
        num_timesteps: Network calls for each image in a test; all T if None, without an error over timesteps.
        target_se: The standard error of the total in a test, in the unit of the report; chooses `num_images` and
            `num_timesteps` with the fewest network calls.
        exact: Also measure the exact likelihood in a test, see `exact_likelihood`; independent of `num_timesteps`.

    Raises:
        ValueError: If a setting is out of range; in `begin`, if a test of the split is not possible with them.
    """

    num_val_timesteps: int | None = 32
    num_images: int | None = None
    num_timesteps: int | None = None
    target_se: float | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        """Checks the settings and starts without a pass."""
        if self.num_val_timesteps is not None and self.num_val_timesteps < 2:
            raise InputError(f"num_val_timesteps = {self.num_val_timesteps} must be at least 2, or None for all T.")
        self._check_test()
        self.last_report: Report | None = None  # of the last pass
        self.last_bound: Bound | None = None  # likewise, of all ranks
        self._initial_moment: Tensor | None = None  # `Bound.second_moment` that the last validation began with
        self._found_moment: Tensor | None = None  # that it found
        self._split: Split | None = None  # of the current pass

    def _check_test(self) -> None:
        if self.target_se is not None and not self.target_se > 0:
            raise InputError(f"target_se = {self.target_se} must be positive.")
        if self.target_se is not None and (self.num_images is not None or self.num_timesteps is not None):
            raise InputError("target_se chooses num_images and num_timesteps: set it alone.")

    @contextmanager
    def using(
        self,
        num_images: int | None = None,
        num_timesteps: int | None = None,
        target_se: float | None = None,
        exact: bool | None = None,
    ) -> Iterator[None]:
        """Replaces settings of a test within a block; a target replaces the numbers, and they replace a target."""
        before = self.num_images, self.num_timesteps, self.target_se, self.exact
        if target_se is not None or num_images is not None or num_timesteps is not None:
            self.num_images, self.num_timesteps, self.target_se = num_images, num_timesteps, target_se
        self.exact = self.exact if exact is None else exact
        try:
            self._check_test()
            yield
        finally:
            self.num_images, self.num_timesteps, self.target_se, self.exact = before

    def reset(self) -> None:
        """Discards the second moments of earlier fits."""
        self._initial_moment = self._found_moment = None

    def begin(self, trainer: Trainer, module: "DDPM", split: Split) -> None:
        """Starts a pass over a split."""
        self._denoiser, self._decoder = module.denoiser, module.decoder
        num_steps = module.denoiser.schedule.num_steps
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._num_available = _images_of(trainer, split)
        self._histogram: Tensor | None = None
        self._chosen: set[int] | None = None
        self._num_chosen = self._num_available
        self._bound: Bound | None = None
        self._waiting: list[tuple[Tensor, dict[str, Any], Tensor]] = []
        self._num_seen = 0
        if split == "val":
            if trainer.state.fn == "fit":
                self._initial_moment = self._found_moment
            self._moment = self._initial_moment
            self._num_calls = min(self.num_val_timesteps or num_steps, num_steps)
        else:
            self._moment = self._found_moment
            self._begin_test(trainer, module)
        self._split = split

    def _begin_test(self, trainer: Trainer, module: "DDPM") -> None:
        """Chooses the images and timesteps of a test, and announces its cost."""
        if self.exact:
            check_flow(module.denoiser)
        num_steps, available = module.denoiser.schedule.num_steps, _tested_images(trainer)
        self._check_size(num_steps, available)
        num_images, num_calls = self.num_images, self.num_timesteps or num_steps
        if self.target_se is not None:
            assert available is not None  # checked above
            num_images, num_calls = self._smallest_test(trainer, module, self.target_se, available)
        self._num_calls = num_calls
        if num_images is not None and available is not None and num_images < available:
            self._chosen = set(random_order(available, EVALUATION_SEED)[:num_images].tolist())
            self._num_chosen = num_images
        # The histogram does not know the condition, so it is not a baseline of a model that does.
        data = getattr(trainer, "datamodule", None)
        if (
            self._decoder.levels
            and self._denoiser.network_spec.cond_channels is None
            and isinstance(data, HasHistogram)
        ):
            self._histogram = data.train_histogram()
        if self._num_chosen is not None:
            kind = "exact bound" if num_calls == num_steps else "estimate of the bound"
            rank_zero_info(f"The {kind} takes {num_calls:,} network calls for each of {self._num_chosen:,} images.")
            if self.exact:
                rank_zero_info(
                    f"The exact likelihood takes {6 * FLOW_STEPS} more with gradients: {FLOW_STEPS} steps of the "
                    f"probability-flow ODE, and {FLOW_STEPS // 2} as a check."
                )

    def _check_size(self, num_steps: int, available: int | None) -> None:
        """Raises a ValueError if a test is not possible with T = `num_steps` and the `available` images."""
        if self.num_timesteps is not None and not 2 <= self.num_timesteps <= num_steps:
            raise InputError(f"num_timesteps = {self.num_timesteps} must be in 2..{num_steps}, the schedule's T.")
        if self.num_images is None and self.target_se is None:
            return
        if available is None:
            raise InputError("num_images and target_se need a test split of known length, with one data loader.")
        if self.num_images is not None and not 1 <= self.num_images <= available:
            raise InputError(f"num_images = {self.num_images} must be in 1..{available}, the images of the test split.")

    def _smallest_test(self, trainer: Trainer, module: "DDPM", target_se: float, available: int) -> Size:
        """Returns the cheapest test for a standard error, by a pilot that every rank measures alike."""
        loader, num_steps = trainer.test_dataloaders, module.denoiser.schedule.num_steps
        assert isinstance(loader, DataLoader)  # `_check_size` has refused others
        rows = random_order(available, EVALUATION_SEED)[:PILOT_IMAGES]
        collate, calls = loader.collate_fn, min(PILOT_CALLS, num_steps)
        (batch,) = DataLoader(loader.dataset, batch_size=len(rows), sampler=rows.tolist(), collate_fn=collate)
        x_0, cond = module.unpack_batch(trainer.strategy.batch_to_device(batch))
        pilot = self._measure(x_0, rows, cond, calls)
        size = smallest_test(pilot, target_se, available)
        total = size.num_images * size.num_timesteps + len(rows) * calls
        rank_zero_info(
            f"target_se = {target_se:g} takes {size.num_timesteps:,} network calls for each of {size.num_images:,} "
            f"random images: with the pilot, 1/{num_steps * available / total:.0f} of the calls of the exact test."
        )
        return size

    def update(self, x_0: Tensor, cond: dict[str, Any]) -> None:
        """Adds the images of a batch, ``[B, C, ...]``, with the keyword arguments of the network."""
        if self._split is None:
            raise RuntimeError(
                "the evaluation was not started: configure_callbacks of a DDPM must return the callbacks of "
                "super().configure_callbacks() too."
            )
        # Distributed samplers deal images to ranks in turn and repeat the first ones to make the shares equal. The
        # index of an image follows from its place in that order; an index past the end is a repetition.
        index = self._rank + self._world_size * (self._num_seen + torch.arange(len(x_0)))
        self._num_seen += (batch_size := len(x_0))
        keep = index < (self._num_available if self._num_available is not None else torch.inf)
        if self._chosen is not None:
            keep &= torch.tensor([int(i) in self._chosen for i in index])
        if not bool(keep.all()):
            cond = {k: v[keep] if is_per_image(v, len(x_0)) else v for k, v in cond.items()}
            x_0, index = x_0[keep], index[keep]
        if len(x_0) > 0:
            self._waiting.append((x_0, cond, index))
        if self._chosen is None or sum(len(index) for _, _, index in self._waiting) >= batch_size:
            self._measure_waiting()

    def _measure_waiting(self) -> None:
        """Measures the images that wait; a random part of a split fills batches from several."""
        if not self._waiting:
            return
        images, conds, indices = zip(*self._waiting, strict=True)
        self._waiting.clear()
        x_0, index = torch.cat(images), torch.cat(indices)
        cond = {
            name: torch.cat([c[name] for c in conds]) if is_per_image(value, len(images[0])) else value
            for name, value in conds[0].items()
        }
        bound = self._measure(x_0, index, cond, self._num_calls)
        if self._histogram is not None:
            bound = bound.with_columns(baseline=histogram_nats(self._histogram, x_0))
        if self.exact and self._split == "test":
            full, half = (
                exact_likelihood(self._denoiser, x_0, self._decoder, steps, EVALUATION_SEED, index, **cond)
                for steps in (FLOW_STEPS, FLOW_STEPS // 2)
            )
            bound = bound.with_likelihood(full, half)
        self._bound = bound if self._bound is None else self._bound + bound

    def _measure(self, x_0: Tensor, index: Tensor, cond: dict[str, Any], num_calls: int) -> Bound:
        arguments = self._denoiser, x_0, self._decoder, num_calls, EVALUATION_SEED, index, self._moment
        return variational_bound(*arguments, **cond)

    def finish(self, trainer: Trainer) -> Report:
        """Returns the report of the split over all ranks."""
        self._measure_waiting()
        bounds = [bound for bound in gather_results(trainer, lambda: self._bound) if bound is not None]
        if not bounds:
            raise InputError(f"the {self._split} split has no images.")
        self.last_bound = bound = sum(bounds[1:], bounds[0])
        self.last_report = bound.report(None if self._chosen is None else self._num_available)
        self._split = None
        if trainer.validating:  # neither testing nor sanity checking
            self._found_moment = bound.second_moment
        return self.last_report

    def state_dict(self) -> dict[str, Tensor | None]:
        """Returns the second moments for a checkpoint."""
        return {"initial_moment": self._initial_moment, "found_moment": self._found_moment}

    def load_state_dict(self, state_dict: dict[str, Tensor | None], num_steps: int) -> None:
        """Restores the second moments, unless they belong to a schedule of another length."""
        moments = state_dict["initial_moment"], state_dict["found_moment"]
        fit = all(moment is None or len(moment) == num_steps - 1 for moment in moments)
        self._initial_moment, self._found_moment = moments if fit else (None, None)


def _images_of(trainer: Trainer, split: Split) -> int | None:
    """Returns the number of images of a split, or None for several loaders or a dataset without a length."""
    loader = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
    dataset = loader.dataset if isinstance(loader, DataLoader) else None
    return len(dataset) if isinstance(dataset, Sized) else None


def _tested_images(trainer: Trainer) -> int | None:
    """Returns the number of test images within ``limit_test_batches``; None if it is unknown."""
    loader, count = trainer.test_dataloaders, _images_of(trainer, "test")
    if count is None or not isinstance(loader, DataLoader) or loader.batch_size is None:
        return count
    (num_batches,) = trainer.num_test_batches
    return int(min(count, num_batches * loader.batch_size * trainer.world_size))
