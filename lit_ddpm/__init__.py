"""Denoising diffusion with PyTorch Lightning, with the variational bound checked, logged and reported."""

import importlib
from typing import TYPE_CHECKING, Any

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.config import Configurable
from lit_ddpm.diffusion.condition import Condition, LowResolution
from lit_ddpm.diffusion.decoder import Decoder, DiscretizedGaussian, GaussianDecoder
from lit_ddpm.diffusion.denoiser import Denoiser, Prediction
from lit_ddpm.diffusion.gaussian import Gaussian, gaussian_kl, q_marginal, q_posterior
from lit_ddpm.diffusion.gradients import GradientStatistics, gradient_statistics
from lit_ddpm.diffusion.guidance import Guidance, GuidedDenoiser
from lit_ddpm.diffusion.objective import (
    X0MSE,
    HybridObjective,
    Objective,
    PosteriorKL,
    PredictionMSE,
    TrainingLoss,
    training_loss,
)
from lit_ddpm.diffusion.parametrization import (
    CategoricalParametrization,
    EDMParametrization,
    EpsParametrization,
    MeanParametrization,
    Parametrization,
    VParametrization,
    X0Parametrization,
)
from lit_ddpm.diffusion.sampler import AncestralSampler, DDIMSampler, DPMSolverSampler, Sampler
from lit_ddpm.diffusion.schedule import Schedule
from lit_ddpm.diffusion.schedules import (
    BetaSchedule,
    CosineSchedule,
    LinearSchedule,
    LogSNRSchedule,
    SigmoidSchedule,
)
from lit_ddpm.diffusion.timesteps import (
    AdaptiveTimesteps,
    ImportanceTimesteps,
    StratifiedTimesteps,
    TimestepSampler,
    UniformTimesteps,
)
from lit_ddpm.diffusion.weighting import (
    EDMWeighting,
    FlowMatchingWeighting,
    KLWeighting,
    LogSNRWeighting,
    MinSNRWeighting,
    P2Weighting,
    SigmoidWeighting,
    SNRWeighting,
    UniformWeighting,
    Weighting,
    kl_weight,
)
from lit_ddpm.likelihood.bound import Bound, bits_per_dim
from lit_ddpm.likelihood.flow import Likelihood, exact_likelihood
from lit_ddpm.likelihood.report import Report
from lit_ddpm.likelihood.variational import variational_bound
from lit_ddpm.nn.unet import UNet

if TYPE_CHECKING:
    from lit_ddpm.training.evaluation import Evaluation
    from lit_ddpm.training.learning_rate import LinearWarmup, OneCycle, num_training_steps
    from lit_ddpm.training.module import DDPM

__version__ = "0.1.0"

__all__ = [
    "DDPM",
    "X0MSE",
    "AdaptiveTimesteps",
    "AncestralSampler",
    "BetaSchedule",
    "Bound",
    "CategoricalParametrization",
    "Condition",
    "Configurable",
    "CosineSchedule",
    "DDIMSampler",
    "DPMSolverSampler",
    "Decoder",
    "Denoiser",
    "DiscretizedGaussian",
    "EDMParametrization",
    "EDMWeighting",
    "EpsParametrization",
    "Evaluation",
    "FlowMatchingWeighting",
    "Gaussian",
    "GaussianDecoder",
    "GradientStatistics",
    "Guidance",
    "GuidedDenoiser",
    "HybridObjective",
    "ImportanceTimesteps",
    "InputError",
    "KLWeighting",
    "Likelihood",
    "LinearSchedule",
    "LinearWarmup",
    "LogSNRSchedule",
    "LogSNRWeighting",
    "LowResolution",
    "MeanParametrization",
    "MinSNRWeighting",
    "Objective",
    "OneCycle",
    "P2Weighting",
    "Parametrization",
    "PosteriorKL",
    "Prediction",
    "PredictionMSE",
    "Report",
    "SNRWeighting",
    "Sampler",
    "Schedule",
    "SigmoidSchedule",
    "SigmoidWeighting",
    "StratifiedTimesteps",
    "TimestepSampler",
    "TrainingLoss",
    "UNet",
    "UniformTimesteps",
    "UniformWeighting",
    "VParametrization",
    "Weighting",
    "X0Parametrization",
    "bits_per_dim",
    "exact_likelihood",
    "gaussian_kl",
    "gradient_statistics",
    "kl_weight",
    "num_training_steps",
    "q_marginal",
    "q_posterior",
    "training_loss",
    "variational_bound",
]


_NEEDS_LIGHTNING = {
    "DDPM": "lit_ddpm.training.module",
    "Evaluation": "lit_ddpm.training.evaluation",
    "LinearWarmup": "lit_ddpm.training.learning_rate",
    "OneCycle": "lit_ddpm.training.learning_rate",
    "num_training_steps": "lit_ddpm.training.learning_rate",
}


def __getattr__(name: str) -> Any:
    """Imports `DDPM` and what belongs to it on first use, so that the mathematics works without Lightning."""
    if name not in _NEEDS_LIGHTNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_NEEDS_LIGHTNING[name]), name)
    globals()[name] = value
    return value
