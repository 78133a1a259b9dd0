"""Schedulers of diffusers: their configuration as schedule, parametrization and variance, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import constructor_defaults
from lit_ddpm._internal.extras import import_extra
from lit_ddpm.diffusion.denoiser import Denoiser
from lit_ddpm.diffusion.parametrization import (
    EpsParametrization,
    Parametrization,
    VParametrization,
    X0Parametrization,
)
from lit_ddpm.diffusion.sampler import AncestralSampler, DDIMSampler, Sampler
from lit_ddpm.diffusion.schedule import Schedule
from lit_ddpm.diffusion.schedules import BetaSchedule, CosineSchedule, LinearSchedule
from lit_ddpm.diffusion.variance import Variance

PREDICTIONS: dict[str, type[Parametrization]] = {
    "epsilon": EpsParametrization,
    "sample": X0Parametrization,
    "v_prediction": VParametrization,
}
VARIANCES: dict[str, Variance] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned",
}
EXPORTED_VARIANCES: dict[Variance, str] = {
    "posterior": "fixed_small",
    "fixed_small": "fixed_small",
    "beta": "fixed_large",
    "fixed_large": "fixed_large",
    "learned": "learned_range",
}


@dataclass(frozen=True)
class Process:
    """The forward and reverse process of a scheduler."""

    schedule: Schedule
    parametrization: Parametrization
    variance: Variance
    clip: bool
    sampler: Sampler


def process_of(config: Mapping[str, Any]) -> Process:
    """Returns the process of a scheduler's configuration; missing entries have the defaults of its class.

    Raises:
        ValueError: If a setting has no equivalent here.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise InputError(f"the scheduler {kind} must be a DDPMScheduler or a DDIMScheduler.")
    scheduler_class = getattr(import_extra("diffusers", needed_by="a scheduler"), kind)
    config = {**constructor_defaults(scheduler_class), **config}
    if config["thresholding"]:
        raise InputError("thresholding = True of the scheduler has no equivalent: it depends on the whole image.")
    if config["clip_sample"] and config["clip_sample_range"] != 1:
        value = config["clip_sample_range"]
        raise InputError(f"clip_sample_range = {value} of the scheduler must be 1, the range of the images.")
    prediction = _one_of(PREDICTIONS, config, "prediction_type")
    if kind == "DDIMScheduler":
        variance: Variance = "fixed_small"
        sampler: Sampler = DDIMSampler(num_steps=min(50, config["num_train_timesteps"]))
        if not config["set_alpha_to_one"]:
            rank_zero_warn("set_alpha_to_one = False of the scheduler is ignored: the last step of DDIM is to t = 0.")
    else:
        variance, sampler = _one_of(VARIANCES, config, "variance_type"), AncestralSampler()
    return Process(_schedule(config), prediction(), variance, bool(config["clip_sample"]), sampler)


def _schedule(config: Mapping[str, Any]) -> Schedule:
    T, start, end = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    zero_terminal_snr = bool(config["rescale_betas_zero_snr"])
    if config["trained_betas"] is not None:
        return BetaSchedule([float(beta) for beta in config["trained_betas"]], zero_terminal_snr)
    match config["beta_schedule"]:
        case "linear":
            return LinearSchedule(T, start * T / 1000, end * T / 1000, zero_terminal_snr)
        case "squaredcos_cap_v2":
            return CosineSchedule(T, zero_terminal_snr=zero_terminal_snr)
        case "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2
        case "sigmoid":
            betas = torch.sigmoid(torch.linspace(-6, 6, T, dtype=torch.float64)) * (end - start) + start
        case other:
            known = "linear, scaled_linear, squaredcos_cap_v2 or sigmoid"
            raise InputError(f"beta_schedule = {other!r} of the scheduler must be {known}, or trained_betas be given.")
    return BetaSchedule(betas.tolist(), zero_terminal_snr)


def _one_of(known: Mapping[str, Any], config: Mapping[str, Any], name: str) -> Any:
    if config[name] not in known:
        raise InputError(f"{name} = {config[name]!r} of the scheduler must be one of {', '.join(known)}.")
    return known[config[name]]


def scheduler_config(denoiser: Denoiser) -> dict[str, Any]:
    """Returns the arguments of the ``DDPMScheduler`` with the process of a denoiser.

    Raises:
        ValueError: If a setting has no equivalent in diffusers.
    """
    names = {kind: name for name, kind in PREDICTIONS.items()}
    prediction = names.get(type(denoiser.parametrization))
    if prediction is None:
        name, known = type(denoiser.parametrization).__name__, ", ".join(kind.__name__ for kind in names)
        raise InputError(f"parametrization = {name} has no DDPMScheduler: it must be one of {known}.")
    if (time := denoiser.network_spec.time) != "t":
        raise InputError(f"time = {time!r} has no DDPMScheduler, which gives a network the timestep.")
    if denoiser.variance not in EXPORTED_VARIANCES:
        allowed = ", ".join(EXPORTED_VARIANCES)
        raise InputError(f"variance = {denoiser.variance!r} has no DDPMScheduler: it must be one of {allowed}.")
    T = denoiser.schedule.num_steps
    return {
        "num_train_timesteps": T,
        "trained_betas": denoiser.schedule.beta(torch.arange(1, T + 1)).tolist(),
        "prediction_type": prediction,
        "variance_type": EXPORTED_VARIANCES[denoiser.variance],
        "clip_sample": denoiser.clip,
    }
