"""The images of a data module: their shape, levels or standardization, classes and conditions."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_ddpm.data.pixels import Standardization
from lit_ddpm.diffusion.decoder import Decoder, DiscretizedGaussian, GaussianDecoder


@dataclass(frozen=True, eq=False)
class DataSpec:
    """What a data module states about its images, and a checkpoint keeps; None where it states nothing."""

    name: str = "the data"  # its class
    image_shape: tuple[int, ...] | None = None  # (C, H, W); (C, L) for sequences, (C, D, H, W) for volumes
    levels: int | None = None  # the number of pixel levels; None also for real values
    real_valued: bool = False
    standardization: Standardization | None = None  # of real values
    states_classes: bool = False
    num_classes: int | None = None  # None also for images without labels
    states_conditions: bool = False
    cond_shape: tuple[int, ...] | None = None  # (C', H, W); None also for images without conditions

    @classmethod
    def of(cls, data: object) -> "DataSpec":
        """Reads the attributes of a data module; any object, or None, is allowed."""
        if data is None:
            return cls()
        return cls(
            name=type(data).__name__,
            image_shape=tuple(getattr(data, "image_shape", None) or ()) or None,
            levels=getattr(data, "levels", None),
            real_valued=getattr(data, "levels", 0) is None,
            standardization=getattr(data, "standardization", None),
            states_classes=hasattr(data, "num_classes"),
            num_classes=getattr(data, "num_classes", None),
            states_conditions=hasattr(data, "cond_shape"),
            cond_shape=getattr(data, "cond_shape", None),
        )

    def completed(self, earlier: "DataSpec | None") -> "DataSpec":
        """Returns these data with the shape and levels of `earlier` ones where they state none."""
        if earlier is None:
            return self
        states_values = self.levels is not None or self.real_valued
        values = self if states_values else earlier
        return replace(
            self,
            image_shape=self.image_shape or earlier.image_shape,
            levels=values.levels,
            real_valued=values.real_valued,
            standardization=values.standardization,
        )

    def differences(self, other: "DataSpec") -> str:
        """Returns the values that both state and in which they differ, with both of them; "" if there are none."""
        pairs = {"image_shape": (self.image_shape, other.image_shape), "levels": (self.levels, other.levels)}
        found = [f"{name} = {a}, not {b}" for name, (a, b) in pairs.items() if None not in (a, b) and a != b]
        if self.standardization is not None and other.standardization is not None:
            mine, others = self.standardization, other.standardization
            if not (torch.allclose(mine.mean, others.mean) and torch.allclose(mine.std, others.std)):
                found.append(f"standard deviation {mine.std.tolist()}, not {others.std.tolist()}")
        return "; ".join(found)

    def decoder(self) -> Decoder:
        """Returns the decoder of the data: that of their pixel levels, 256 if they state none, or of real values."""
        return GaussianDecoder() if self.real_valued else DiscretizedGaussian(self.levels or 256)

    def in_units(self, values: Tensor) -> Tensor:
        """Returns standardized values ``[B, C, ...]`` in the units of the data; pixel levels stay in [-1, 1]."""
        return values if self.standardization is None else self.standardization.undo(values)

    def standardized(self, values: Tensor) -> Tensor:
        """Returns values in the units of the data as the network sees them, the inverse of `in_units`."""
        return values if self.standardization is None else self.standardization.apply(values)

    def state(self) -> dict[str, Any]:
        """Returns the data as numbers, strings, tuples and tensors, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "DataSpec":
        """Restores what `state` returned."""
        values = state["standardization"]
        return cls(**(state | {"standardization": None if values is None else Standardization(**values)}))
