"""Denoising diffusion with PyTorch Lightning, with the variational bound as a checked and logged ledger."""

from lit_ddpm.decoder import Decoder, DiscretizedGaussian, GaussianDecoder
from lit_ddpm.denoiser import Denoiser, GuidedDenoiser, Prediction
from lit_ddpm.elbo import Bound, bits_per_dim, variational_bound
from lit_ddpm.gaussian import Gaussian, gaussian_kl, q_marginal, q_posterior
from lit_ddpm.module import DDPM
from lit_ddpm.nn.unet import UNet
from lit_ddpm.objective import (
    X0MSE,
    HybridObjective,
    KLWeighting,
    MinSNRWeighting,
    Objective,
    PosteriorKL,
    PredictionMSE,
    SNRWeighting,
    UniformWeighting,
    Weighting,
    kl_weight,
)
from lit_ddpm.parametrization import (
    EpsParametrization,
    MeanParametrization,
    Parametrization,
    VParametrization,
    X0Parametrization,
)
from lit_ddpm.sampler import AncestralSampler, DDIMSampler, DPMSolverSampler, Sampler
from lit_ddpm.schedule import (
    BetaSchedule,
    CosineSchedule,
    LinearSchedule,
    LogSNRSchedule,
    Schedule,
    SigmoidSchedule,
)
from lit_ddpm.timestep import ImportanceTimesteps, StratifiedTimesteps, TimestepSampler, UniformTimesteps

__version__ = "0.1.0"

__all__ = [
    "DDPM",
    "X0MSE",
    "AncestralSampler",
    "BetaSchedule",
    "Bound",
    "CosineSchedule",
    "DDIMSampler",
    "DPMSolverSampler",
    "Decoder",
    "Denoiser",
    "DiscretizedGaussian",
    "EpsParametrization",
    "Gaussian",
    "GaussianDecoder",
    "GuidedDenoiser",
    "HybridObjective",
    "ImportanceTimesteps",
    "KLWeighting",
    "LinearSchedule",
    "LogSNRSchedule",
    "MeanParametrization",
    "MinSNRWeighting",
    "Objective",
    "Parametrization",
    "PosteriorKL",
    "Prediction",
    "PredictionMSE",
    "SNRWeighting",
    "Sampler",
    "Schedule",
    "SigmoidSchedule",
    "StratifiedTimesteps",
    "TimestepSampler",
    "UNet",
    "UniformTimesteps",
    "UniformWeighting",
    "VParametrization",
    "Weighting",
    "X0Parametrization",
    "bits_per_dim",
    "gaussian_kl",
    "kl_weight",
    "q_marginal",
    "q_posterior",
    "variational_bound",
]
