import math
from itertools import pairwise

import pytest
import torch
from helpers import TinyNetwork, oracle, tiny_denoiser

from lit_ddpm import (
    AncestralSampler,
    DDIMSampler,
    Denoiser,
    DPMSolverSampler,
    LinearSchedule,
    Sampler,
    X0Parametrization,
)


@pytest.mark.parametrize(("variance", "num_steps"), [("beta", None), ("posterior", None), ("posterior", 40)])
def test_samples_of_an_oracle_have_the_moments_of_the_data(variance, num_steps):
    """The reverse process of a Gaussian is linear, so the moments of its samples follow exactly."""
    schedule = LinearSchedule(num_steps=200)
    tau2, mean = 0.25, 0.3
    denoiser = oracle(schedule, tau2, mean, variance=variance).double()
    sampler = AncestralSampler(num_steps, chunk_size=20_000)
    x = sampler(denoiser, (20_000, 1))
    expected_mean, expected_var = torch.zeros(1, 1, dtype=torch.float64), 1.0
    visited = sampler.timesteps(schedule)
    for t, s in pairwise(visited):
        zero, one = (denoiser.p_posterior(torch.full((1, 1), v, dtype=torch.float64), t, s) for v in (0.0, 1.0))
        slope = float(one.mean - zero.mean)
        expected_mean = zero.mean + slope * expected_mean
        expected_var = slope**2 * expected_var + (float(zero.var) if s > 0 else 0.0)
    assert float(x.mean()) == pytest.approx(float(expected_mean), abs=4 * (expected_var / 20_000) ** 0.5)
    assert float(x.var()) == pytest.approx(expected_var, rel=0.05)
    assert float(expected_mean) == pytest.approx(mean, abs=0.02)
    if variance == "beta":
        assert expected_var == pytest.approx(tau2, rel=0.02)


def test_strided_with_all_steps_is_ancestral():
    denoiser = tiny_denoiser(20, clip=True)
    assert AncestralSampler(20).timesteps(denoiser.schedule) == list(range(20, -1, -1))
    assert torch.equal(AncestralSampler(20)(denoiser, (4, 1, 4, 4)), AncestralSampler()(denoiser, (4, 1, 4, 4)))


def test_fewer_steps_visit_the_last_timestep_and_zero():
    for num_steps in (1, 3, 7, 19):
        visited = AncestralSampler(num_steps).timesteps(LinearSchedule(20))
        assert visited[0] == 20
        assert visited[-1] == 0
        assert len(set(visited)) == len(visited) == num_steps + 1


def test_ddim_with_eta_1_and_all_steps_is_ancestral():
    denoiser = tiny_denoiser(20, clip=True).double()
    ancestral, ddim = AncestralSampler()(denoiser, (4, 1, 4, 4)), DDIMSampler(eta=1)(denoiser, (4, 1, 4, 4))
    torch.testing.assert_close(ddim, ancestral, rtol=1e-6, atol=1e-6)


def test_ddim_with_eta_0_draws_no_noise():
    denoiser, generator = tiny_denoiser(20, clip=True), torch.Generator().manual_seed(0)
    before = generator.get_state()
    with torch.no_grad():
        list(DDIMSampler(5).trajectory(denoiser, torch.ones(2, 1, 4, 4), generator))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("sampler", "order"), [(DDIMSampler, 1), (DPMSolverSampler, 2)])
def test_convergence_order_of_deterministic_samplers(sampler, order):
    """The exact flow of Gaussian data keeps x_t proportional to the standard deviation of q(x_t)."""
    schedule = LinearSchedule(num_steps=4000)
    tau2 = 0.25
    denoiser = oracle(schedule, tau2).double()
    std = {t: float(schedule.alpha_bar(t) * tau2 + schedule.one_minus_alpha_bar(t)) ** 0.5 for t in (4000, 1000)}
    errors = []
    for num_steps in (40, 80, 160):
        x_T = torch.ones(1, 1, dtype=torch.float64)
        with torch.no_grad():
            path = dict(sampler(num_steps).trajectory(denoiser, x_T, torch.Generator()))
        errors.append(abs(float(path[1000]) - std[1000] / std[4000]))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.35)


def test_only_the_ends_of_the_solver_are_of_first_order():
    """The estimate is extrapolated by half a step in log(signal / noise), except at the first step and at the last."""
    denoiser = tiny_denoiser(30).double()
    schedule, x_T = denoiser.schedule, torch.randn(2, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        path = dict(DPMSolverSampler().trajectory(denoiser, x_T, torch.Generator()))
        for t in range(30, 0, -1):
            estimate = denoiser(path[t], t)
            if t not in (30, 1):
                log_ratio = {n: 0.5 * math.log(schedule.snr(n)) for n in (t + 1, t, t - 1)}
                ratio = (log_ratio[t - 1] - log_ratio[t]) / (2 * (log_ratio[t] - log_ratio[t + 1]))
                estimate = estimate + ratio * (estimate - denoiser(path[t + 1], t + 1))
            kept = math.sqrt(schedule.one_minus_alpha_bar(t - 1) / schedule.one_minus_alpha_bar(t))
            signal_t, signal_s = math.sqrt(schedule.alpha_bar(t)), math.sqrt(schedule.alpha_bar(t - 1))
            expected = kept * path[t] + (signal_s - kept * signal_t) * estimate
            torch.testing.assert_close(path[t - 1], expected, rtol=1e-10, atol=1e-10)


def test_chunks_have_64_images_by_default():
    """Another size gives other images."""

    class Own(AncestralSampler):
        __init__ = Sampler.__init__

    assert {kind().chunk_size for kind in (AncestralSampler, DDIMSampler, DPMSolverSampler, Own)} == {64}


def test_a_multistep_sampler_starts_each_trajectory_afresh():
    denoiser, sampler = tiny_denoiser(20, clip=True), DPMSolverSampler(6, chunk_size=2)
    four = sampler(denoiser, (4, 1, 4, 4))
    assert torch.equal(sampler(denoiser, (2, 1, 4, 4), first_index=2), four[2:])
    assert torch.equal(sampler(denoiser, (4, 1, 4, 4)), four)


@pytest.mark.parametrize("sampler", [AncestralSampler(6), DDIMSampler(6, eta=0.5), DPMSolverSampler(6)])
def test_interleaved_trajectories_are_those_of_one_alone(sampler):
    denoiser, starts, settings = tiny_denoiser(20, clip=True), torch.randn(2, 2, 1, 4, 4), dict(vars(sampler))

    def trajectory(number):
        return sampler.trajectory(denoiser, starts[number], torch.Generator().manual_seed(number))

    with torch.no_grad():
        alone = [list(trajectory(number)) for number in (0, 1)]
        together = list(zip(trajectory(0), trajectory(1), strict=True))
    for number in (0, 1):
        for (s, x_s), (expected_s, expected) in zip([pair[number] for pair in together], alone[number], strict=True):
            assert s == expected_s
            assert torch.equal(x_s, expected)
    assert vars(sampler) == settings


@pytest.mark.parametrize("sampler", [DDIMSampler(5), DDIMSampler(5, eta=1.0), DPMSolverSampler(5)])
def test_samplers_start_at_zero_terminal_snr(sampler):
    torch.manual_seed(0)
    schedule = LinearSchedule(20, zero_terminal_snr=True)
    denoiser = Denoiser(TinyNetwork(num_steps=20), schedule, X0Parametrization())
    assert torch.isfinite(sampler(denoiser, (2, 1, 4, 4))).all()


def test_an_image_is_a_function_of_seed_and_index():
    denoiser, sampler = tiny_denoiser(20, clip=True), AncestralSampler(5, chunk_size=4)
    ten = sampler(denoiser, (10, 1, 4, 4), seed=7)
    assert ten.shape == (10, 1, 4, 4)
    for first, count in ((0, 1), (3, 4), (4, 4), (9, 1), (2, 8)):
        part = sampler(denoiser, (count, 1, 4, 4), seed=7, first_index=first)
        assert torch.equal(part, ten[first : first + count])
    assert not torch.equal(ten, sampler(denoiser, (10, 1, 4, 4), seed=8))
    assert torch.equal(sampler(denoiser, (2, 1, 4, 4)), sampler(denoiser, (2, 1, 4, 4), seed=0, first_index=0))
    assert len({tuple(image.flatten().tolist()) for image in ten}) == 10
    assert sampler(denoiser, (0, 1, 4, 4)).shape == (0, 1, 4, 4)


def test_conditions_are_split_with_the_images():
    denoiser, sampler = tiny_denoiser(20, clip=True), AncestralSampler(3, chunk_size=4)
    network = denoiser.network
    denoiser.network = Conditional(network)
    shift = torch.linspace(-1, 1, 6)
    six = sampler(denoiser, (6, 1, 4, 4), shift=shift, scale=1.0)
    part = sampler(denoiser, (3, 1, 4, 4), first_index=2, shift=shift[2:5], scale=1.0)
    assert torch.equal(part, six[2:5])


class Conditional(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x_t, t, shift, scale):
        return self.network(x_t, t) + scale * shift[:, None, None, None]


def test_random_state_and_training_mode_are_unchanged():
    denoiser = tiny_denoiser(20, clip=True)
    before = torch.get_rng_state()
    x = AncestralSampler(3)(denoiser, (2, 1, 4, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert denoiser.training
    assert not x.requires_grad


def test_the_trajectory_visits_every_timestep():
    denoiser, sampler = tiny_denoiser(20, clip=True), AncestralSampler(4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        path = list(sampler.trajectory(denoiser, torch.randn(2, 1, 4, 4, generator=generator), generator))
    assert [t for t, _ in path] == sampler.timesteps(denoiser.schedule)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="num_steps = 0"):
        AncestralSampler(0)
    with pytest.raises(ValueError, match="chunk_size = 0"):
        AncestralSampler(chunk_size=0)
    with pytest.raises(ValueError, match=r"num_steps = 21 .*at most the schedule's 20"):
        AncestralSampler(21)(tiny_denoiser(20, clip=True), (1, 1, 4, 4))
    for eta in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"eta = {eta} of DDIMSampler must be in \[0, 1\]"):
            DDIMSampler(eta=eta)
