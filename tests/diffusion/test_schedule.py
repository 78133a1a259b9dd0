import math
import warnings
from decimal import Decimal

import pytest
import torch

from lit_ddpm import BetaSchedule, CosineSchedule, LinearSchedule, LogSNRSchedule, Schedule, SigmoidSchedule


def test_tables_follow_from_the_betas(schedule):
    t = torch.arange(1, schedule.num_steps + 1)
    product = torch.cumprod(schedule.alpha(t), 0)
    torch.testing.assert_close(schedule.alpha_bar(t), product, rtol=1e-9, atol=1e-300)
    torch.testing.assert_close(schedule.alpha(t), 1 - schedule.beta(t))
    assert schedule.alpha_bar(0) == 1
    assert schedule.beta(t).dtype == torch.float64
    assert bool((torch.diff(schedule.snr(t)) < 0).all())


def test_given_betas_come_back():
    betas = torch.linspace(1e-5, 0.5, 50, dtype=torch.float64)
    torch.testing.assert_close(BetaSchedule(betas).beta(torch.arange(1, 51)), betas, rtol=1e-11, atol=0)


def test_tables_keep_their_relative_precision_at_10_000_steps():
    """The products of alpha in decimal arithmetic with 28 digits."""
    schedule, alpha_bar = LinearSchedule(num_steps=10_000), Decimal(1)
    for t, beta in enumerate(schedule.betas().tolist()[:20], start=1):
        alpha_bar *= 1 - Decimal(beta)
        assert float(schedule.one_minus_alpha_bar(t)) == pytest.approx(float(1 - alpha_bar), rel=1e-14, abs=0)
        assert float(schedule.beta(t)) == pytest.approx(beta, rel=1e-13, abs=0)
        assert float(schedule.snr(t)) == pytest.approx(float(alpha_bar / (1 - alpha_bar)), rel=1e-14, abs=0)


def test_the_linear_schedule_is_the_published_one():
    schedule = LinearSchedule()
    assert float(schedule.beta(1)) == pytest.approx(1e-4, rel=1e-12)
    assert float(schedule.beta(1000)) == pytest.approx(0.02, rel=1e-12)
    expected = math.exp(sum(math.log1p(-b) for b in torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()))
    assert float(schedule.alpha_bar(1000)) == pytest.approx(expected, rel=1e-11)
    short = LinearSchedule(num_steps=100)
    assert float(short.beta(1)) == pytest.approx(1e-3, rel=1e-12)
    assert math.log(short.alpha_bar(100)) == pytest.approx(math.log(schedule.alpha_bar(1000)), rel=0.1)


def test_cosine_and_sigmoid_are_the_published_curves():
    def curve(t):
        return math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    cosine = CosineSchedule(num_steps=100)
    for t in (1, 50, 99):
        assert float(cosine.alpha_bar(t)) == pytest.approx(curve(t) / curve(0), rel=1e-10)
    assert float(cosine.beta(100)) == pytest.approx(0.999, rel=1e-12)

    def falling(t):
        return 1 / (1 + math.exp(6 * t / 100 - 3))

    sigmoid = SigmoidSchedule(num_steps=100)
    for t in (1, 50, 99):
        expected = (falling(t) - falling(100)) / (falling(0) - falling(100))
        assert float(sigmoid.alpha_bar(t)) == pytest.approx(expected, rel=1e-10)


def test_a_sigmoid_has_its_ends_and_its_temperature():
    sigmoid = SigmoidSchedule(num_steps=100, start=-2, end=4, temperature=0.7)

    def falling(t):
        return 1 / (1 + math.exp((6 * t / 100 - 2) / 0.7))

    for t in (1, 50, 99):
        expected = (falling(t) - falling(100)) / (falling(0) - falling(100))
        assert float(sigmoid.alpha_bar(t)) == pytest.approx(expected, rel=1e-10)
    assert float(sigmoid.beta(100)) == pytest.approx(0.999, rel=1e-12)


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule, SigmoidSchedule, LogSNRSchedule])
def test_a_schedule_has_1000_steps(kind):
    assert len(kind().betas()) == 1000


def test_log_snr_is_a_straight_line():
    schedule = LogSNRSchedule(29, 8, -6)
    log_snr = torch.log(schedule.snr(torch.arange(1, 30)))
    torch.testing.assert_close(log_snr, torch.linspace(8, -6, 29, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    assert math.log(LogSNRSchedule().snr(1)) == pytest.approx(9)
    assert math.log(LogSNRSchedule().snr(1000)) == pytest.approx(-6)


def test_log_snr_may_start_at_almost_no_noise():
    schedule = LogSNRSchedule(num_steps=10, log_snr_start=30)
    for t, log_snr in enumerate(torch.linspace(30, -6, 10, dtype=torch.float64).tolist(), start=1):
        assert math.log(schedule.snr(t)) == pytest.approx(log_snr, rel=1e-12)
        assert float(schedule.one_minus_alpha_bar(t)) == pytest.approx(1 / (1 + math.exp(log_snr)), rel=1e-12, abs=0)


def test_zero_terminal_snr_keeps_the_first_step():
    plain, rescaled = LinearSchedule(), LinearSchedule(zero_terminal_snr=True)
    assert rescaled.alpha_bar(1000) == 0
    assert rescaled.snr(1000) == 0
    assert rescaled.beta(1000) == 1
    assert float(rescaled.alpha_bar(1)) == pytest.approx(float(plain.alpha_bar(1)), rel=1e-12)
    root, last = plain.alpha_bar(500).sqrt(), plain.alpha_bar(1000).sqrt()
    expected = ((root - last) * plain.alpha_bar(1).sqrt() / (plain.alpha_bar(1).sqrt() - last)) ** 2
    torch.testing.assert_close(rescaled.alpha_bar(500), expected, rtol=1e-11, atol=0)


def test_a_high_terminal_snr_is_warned_about():
    with pytest.warns(UserWarning, match=r"SNR\(T\) = .* is above 0.01"):
        BetaSchedule([0.1, 0.2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearSchedule()


def test_a_subclass_needs_one_method():
    class Quadratic(Schedule):
        def betas(self):
            return torch.linspace(0.01, 0.14, self.num_steps) ** 2

    assert float(Quadratic(num_steps=1000).beta(1000)) == pytest.approx(0.14**2, rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, -0.1, 1.5, math.nan])
def test_betas_outside_their_range_are_refused(beta):
    with pytest.raises(ValueError, match=r"beta\(2\) = .*must be in \(0, 1\]"):
        BetaSchedule([0.5, beta, 0.5, beta])


def test_the_last_beta_may_be_one():
    schedule = BetaSchedule([0.1, 0.5, 1.0])
    assert schedule.alpha_bar(3) == 0
    assert schedule.beta(3) == 1
    assert str(schedule) == "BetaSchedule(num_steps=3)"


def test_bad_settings_are_refused_by_name():
    for num_steps in (1, 100.0, True):
        with pytest.raises(ValueError, match=f"num_steps = {num_steps}: a schedule needs an integer of at least 2"):
            LinearSchedule(num_steps=num_steps)
    with pytest.raises(ValueError, match=r"beta\(6\) = .*num_steps=10|num_steps=10.*beta"):
        LinearSchedule(num_steps=10)
    for start in (2, 3):
        with pytest.raises(ValueError, match="log_snr_end must be less than log_snr_start"):
            LogSNRSchedule(log_snr_start=start, log_snr_end=3)
    for settings in ({"temperature": 0}, {"temperature": -0.5}, {"start": 3}, {"start": 4}):
        with pytest.raises(ValueError, match="start must be less than end, and temperature positive"):
            SigmoidSchedule(**settings)


@pytest.mark.parametrize("t", [0, 1001, torch.tensor([5, 0]), torch.tensor([1001]), torch.tensor([1, 1001])])
def test_timesteps_outside_the_schedule_are_refused(t):
    schedule = LinearSchedule()
    for table in (schedule.beta, schedule.alpha, schedule.snr):
        with pytest.raises(ValueError, match=r"t = (0|1001) .*1\.\.1000"):
            table(t)
    with pytest.raises(ValueError, match=r"t = -1 .*0\.\.1000"):
        schedule.alpha_bar(-1)


@pytest.mark.parametrize("t", [1.0, torch.tensor([1.0]), torch.tensor([True]), "1", True, None])
def test_timesteps_of_the_wrong_type_are_refused(t):
    with pytest.raises(TypeError, match="t must"):
        LinearSchedule().beta(t)


@pytest.mark.parametrize("schedule", [LinearSchedule(50), CosineSchedule(50), LogSNRSchedule(50)], ids=str)
def test_real_timesteps_interpolate_log_snr(schedule):
    t = torch.arange(1, 51)
    for table in (schedule.log_snr, schedule.snr, schedule.alpha_bar, schedule.one_minus_alpha_bar):
        torch.testing.assert_close(table(t.float()), table(t), rtol=1e-12, atol=1e-14)
    middle = torch.tensor([3.25])
    expected = 0.75 * math.log(float(schedule.snr(3))) + 0.25 * math.log(float(schedule.snr(4)))
    assert float(schedule.log_snr(middle)) == pytest.approx(expected, rel=1e-12)
    assert float(schedule.alpha_bar(middle)) == pytest.approx(1 / (1 + math.exp(-expected)), rel=1e-12)
    h = 1e-6
    slope = (schedule.snr(middle.double() + h) - schedule.snr(middle.double() - h)) / (2 * h)
    assert float(schedule.snr_slope(middle)) == pytest.approx(float(slope), rel=1e-6)
    real = torch.tensor([1.0, 3.25, 49.9, 50.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.time_of(schedule.log_snr(real)), real, rtol=1e-9, atol=0)


@pytest.mark.parametrize("t", [0.5, 50.1, math.nan])
def test_real_timesteps_outside_the_schedule_are_refused(t):
    with pytest.raises(ValueError, match=rf"t = {t:g} must be in \[1, 50\]"):
        LinearSchedule(50).snr(torch.tensor([t]))


def test_a_log_snr_outside_the_schedule_is_refused():
    with pytest.raises(ValueError, match=r"log SNR = 9.5 to 9.5 is outside .*, whose range is 9 to -6"):
        LogSNRSchedule(50).time_of(torch.tensor([9.5]))
