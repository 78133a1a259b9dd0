"""Every combination of parts is refused when it is made, with the reason, or trains and samples.

The parts are found among the subclasses, so a new class joins by itself.
"""

import itertools
import random
import re
import warnings

import pytest
import torch
from helpers import trainer
from torch import nn
from torch.utils.data import DataLoader

import lit_ddpm
from lit_ddpm import DDPM, DiscretizedGaussian, Evaluation
from lit_ddpm.callbacks import SkipNonFinite

T = 24
NEEDS = {"BetaSchedule": {"values": [0.2] * T}}  # arguments without a default; the others get num_steps


def classes(base):
    for kind in base.__subclasses__():
        if kind.__module__.startswith("lit_ddpm") and not kind.__abstractmethods__:
            yield kind
        yield from classes(kind)


def schedules():
    for kind in classes(lit_ddpm.Schedule):
        for zero in (False, True):
            yield f"{kind.__name__}{'-zero' if zero else ''}", kind, NEEDS.get(kind.__name__, {"num_steps": T}), zero


def objectives():
    for kind in classes(lit_ddpm.Objective):
        if kind is lit_ddpm.X0MSE:
            yield from ((f"X0MSE-{w.__name__}", lambda w=w: lit_ddpm.X0MSE(w())) for w in classes(lit_ddpm.Weighting))
        else:
            yield kind.__name__, kind


def quietly(kind, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few steps leave some signal in x_T
        return kind(**arguments)


FACTORS = {
    "schedule": {
        name: lambda kind=kind, arguments=arguments, zero=zero: quietly(kind, {**arguments, "zero_terminal_snr": zero})
        for name, kind, arguments, zero in schedules()
    },
    "parametrization": {
        kind.__name__: kind
        for kind in classes(lit_ddpm.Parametrization)
        if kind is not lit_ddpm.CategoricalParametrization  # its own tests; its outputs are those of the data
    },
    "variance": {name: lambda name=name: name for name in ("posterior", "beta", "learned")},
    "objective": dict(objectives()),
    "timesteps": {kind.__name__: kind for kind in classes(lit_ddpm.TimestepSampler)},
    "sampler": {kind.__name__: lambda kind=kind: kind(num_steps=5) for kind in classes(lit_ddpm.Sampler)},
}
PRECISIONS = ["32-true", "bf16-mixed", "bf16-true"]
REASONS = r"whose SNR\(T\) is zero|is not trained by|HybridObjective trains a variance"


class Convolution(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1)

    def forward(self, x_t, t):
        return self.conv(x_t) * (1 - t[:, None, None, None].to(x_t) / (2 * T))


def make(choice):
    parts = {factor: FACTORS[factor][name]() for factor, name in choice.items()}
    network = Convolution(2 if choice["variance"] == "learned" else 1)
    return DDPM(network, decoder=DiscretizedGaussian(17), evaluation=Evaluation(3), **parts)


def sort_out():
    """The valid combinations, and the errors of all others; the samplers fit all of them, so each has a random one."""
    rng, samplers = random.Random(0), list(FACTORS["sampler"])
    others = [factor for factor in FACTORS if factor != "sampler"]
    valid, reasons = [], set()
    for names in itertools.product(*(FACTORS[factor] for factor in others)):
        choice = {**dict(zip(others, names, strict=True)), "sampler": rng.choice(samplers)}
        try:
            make(choice)
        except ValueError as error:
            reasons.add(str(error))
        else:
            valid.append(choice)
    return valid, reasons


def pairs(choice):
    return set(itertools.combinations(sorted(choice.items()), 2))


def covering(valid):
    """A small set of combinations that covers every valid pair of parts, chosen greedily with a fixed seed."""
    rng = random.Random(0)
    everything = [{**choice, "precision": rng.choice(PRECISIONS)} for choice in valid]
    wanted = set().union(*(pairs(choice) for choice in everything))
    chosen = []
    while wanted:
        tried = rng.sample(everything, min(200, len(everything)))
        best = max(tried, key=lambda choice: len(pairs(choice) & wanted))
        if not pairs(best) & wanted:
            best = next(choice for choice in everything if pairs(choice) & wanted)
        chosen.append(best)
        wanted -= pairs(best)
    return chosen


@pytest.fixture(scope="module")
def matrix():
    return sort_out()


def test_every_combination_is_valid_or_refused_with_a_reason(matrix):
    valid, reasons = matrix
    for reason in reasons:
        assert re.search(REASONS, reason), reason
    for choice in valid:
        assert not ("zero" in choice["schedule"] and choice["parametrization"].startswith(("Eps", "Mean")))
        assert (choice["variance"] == "learned") <= (choice["objective"] in ("PosteriorKL", "HybridObjective"))
    for factor, names in FACTORS.items():
        assert {choice[factor] for choice in valid} == set(names)


def test_a_pairwise_covering_trains_and_samples(matrix):
    images = torch.randint(0, 17, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 8 - 1
    for choice in covering(matrix[0]):
        settings = dict(choice)
        precision = settings.pop("precision")
        torch.manual_seed(0)
        module = make(settings)
        before = module.denoiser.network.conv.weight.detach().clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guard = SkipNonFinite()
            run = trainer(max_steps=5, max_epochs=-1, limit_val_batches=0, precision=precision, callbacks=[guard])
            run.fit(module, DataLoader(images, batch_size=8))
            with run.precision_plugin.forward_context():
                samples = module.sample(3)
        assert guard.skipped_steps == 0, choice
        assert not torch.equal(before.float(), module.denoiser.network.conv.weight.float()), choice
        assert samples.shape == (3, 1, 8, 8), choice
        assert bool(torch.isfinite(samples).all()), choice
        assert float(samples.abs().max()) < 2, choice
