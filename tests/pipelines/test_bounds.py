"""The bound next to the bits/dim loops of Ho et al. 2020 and Nichol and Dhariwal 2021, which are written anew here."""

import math

import numpy as np
import pytest
import torch
from helpers.pipelines import random_pipeline
from scipy.stats import norm

from lit_ddpm import DiscretizedGaussian, bits_per_dim, variational_bound
from lit_ddpm._internal.random import keyed_generator
from lit_ddpm.data import to_float
from lit_ddpm.pipelines import load_pipeline

LEVELS = 256


def normal_kl(mean1, log_var1, mean2, log_var2):
    return 0.5 * (-1 + log_var2 - log_var1 + np.exp(log_var1 - log_var2) + (mean1 - mean2) ** 2 * np.exp(-log_var2))


def discretized_log_likelihood(x, mean, log_scale):
    """The logarithm of the mass of the bin of each pixel."""
    scale = np.exp(log_scale)
    upper, lower = (x + 1 / 255 - mean) / scale, (x - 1 / 255 - mean) / scale
    right = lower + upper > 0
    larger = np.where(right, norm.logsf(lower), norm.logcdf(upper))
    smaller = np.where(right, norm.logsf(upper), norm.logcdf(lower))
    inner = larger + np.log1p(-np.exp(smaller - larger))
    return np.where(x > 0.999, norm.logsf(lower), np.where(x < -0.999, norm.logcdf(upper), inner))


def bits_of_a_loop(pipeline, x_0, noises):
    """Bits/dim of each image: the prior, and a term for each of t = T-1..0 with the noise of that step."""
    config = pipeline.scheduler.config
    T = config.num_train_timesteps
    i = np.arange(T + 1)
    curve = np.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    bars = np.cumprod(1 - betas)
    bars_before = np.append(1.0, bars[:-1])
    variance = betas * (1 - bars_before) / (1 - bars)
    clipped_log_variance = np.log(np.append(variance[1], variance[1:]))
    x_0 = x_0.numpy().astype(np.float64)
    prior = normal_kl(np.sqrt(bars[-1]) * x_0, np.log(1 - bars[-1]), 0.0, 0.0).mean((1, 2, 3)) / math.log(2)
    total = prior
    for t in range(T):
        noise = noises[t].numpy().astype(np.float64)
        x_t = np.sqrt(bars[t]) * x_0 + np.sqrt(1 - bars[t]) * noise
        with torch.no_grad():
            output = pipeline.unet(torch.from_numpy(x_t).float(), t).sample.double().numpy()
        if config.variance_type == "learned_range":
            output, v = np.split(output, 2, axis=1)
            fraction = (v + 1) / 2
            log_variance = fraction * np.log(betas[t]) + (1 - fraction) * clipped_log_variance[t]
        elif config.variance_type == "fixed_large":
            log_variance = np.log(np.append(variance[1], betas[1:]))[t]
        else:
            log_variance = clipped_log_variance[t]
        if config.prediction_type == "epsilon":
            estimate = np.sqrt(1 / bars[t]) * x_t - np.sqrt(1 / bars[t] - 1) * output
        elif config.prediction_type == "v_prediction":
            estimate = np.sqrt(bars[t]) * x_t - np.sqrt(1 - bars[t]) * output
        else:
            estimate = output
        if config.clip_sample:
            estimate = estimate.clip(-1, 1)
        coefficient1 = betas[t] * np.sqrt(bars_before[t]) / (1 - bars[t])
        coefficient2 = (1 - bars_before[t]) * np.sqrt(1 - betas[t]) / (1 - bars[t])
        mean = coefficient1 * estimate + coefficient2 * x_t
        if t == 0:
            term = -discretized_log_likelihood(x_0, mean, 0.5 * log_variance)
        else:
            true_mean = coefficient1 * x_0 + coefficient2 * x_t
            term = normal_kl(true_mean, clipped_log_variance[t], mean, log_variance)
        total = total + term.mean((1, 2, 3)) / math.log(2)
    return total


def noise_of_the_bound(shape, num_steps):
    """The noise that `variational_bound` draws for images 0, 1, ..., by timestep."""
    generators = [keyed_generator("bound", 0, index) for index in range(shape[0])]
    for generator in generators:
        torch.rand(num_steps - 1, generator=generator, dtype=torch.float64)  # the timesteps
    blocks = [
        torch.stack([torch.randn((16, *shape[1:]), generator=generator) for generator in generators], 1)
        for _ in range(-(-num_steps // 16))
    ]
    return torch.cat(blocks)[:num_steps]


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_bound_equals_the_loops_of_the_papers(prediction_type, variance_type, clips, tmp_path):
    settings = {"prediction_type": prediction_type, "variance_type": variance_type, "clip_sample": clips}
    pipeline = random_pipeline(**settings)
    pipeline.save_pretrained(tmp_path)
    denoiser = load_pipeline(tmp_path).denoiser
    pixels = torch.randint(0, LEVELS, (3, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pixels[0, 0, 0, :4] = torch.tensor([0, 255, 0, 255])
    x_0 = to_float(pixels, LEVELS)
    T = denoiser.schedule.num_steps
    expected = bits_of_a_loop(pipeline, x_0, noise_of_the_bound(x_0.shape, T))
    bound = variational_bound(denoiser, x_0, DiscretizedGaussian(LEVELS))
    ours = bits_per_dim(bound.total, x_0[0].numel()).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
