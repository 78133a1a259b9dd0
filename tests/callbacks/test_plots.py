"""Tables and plots of the bound."""

import numpy as np
import pytest
import torch
from helpers import TinyNetwork

from lit_ddpm import Denoiser, DiscretizedGaussian, LogSNRSchedule, VParametrization, bits_per_dim, variational_bound
from lit_ddpm.callbacks import plots

T = 40


def measured(num_timesteps=None, count=30, second_moment=None):
    torch.manual_seed(0)
    schedule = LogSNRSchedule(num_steps=T, log_snr_start=6, log_snr_end=-6)
    denoiser = Denoiser(TinyNetwork(num_steps=T), schedule, VParametrization(), clip=True)
    x_0 = torch.randint(0, 17, (count, 1, 4, 4)) / 8 - 1
    decoder, batches = DiscretizedGaussian(17), torch.arange(2 * count).split(count)
    bounds = [variational_bound(denoiser, x_0, decoder, num_timesteps, 0, i, second_moment) for i in batches]
    return sum(bounds), sum(bounds).report()


def table_of(report):
    training = (np.arange(T - 1, dtype=float), np.ones(T - 1))
    return plots.profile_table(report, training, list(range(T - 1)), list(range(T - 1)))


def test_the_table_of_an_exact_bound_is_the_bound():
    bound, report = measured()
    table = table_of(report)
    kl = bits_per_dim(bound.profile, 16).numpy()
    assert table["t"].tolist() == list(range(2, T + 1))
    assert table["kl"] == pytest.approx(kl, rel=1e-9)
    assert table["kl_training"].tolist() == list(range(T - 1))
    prior = report.terms["prior"].value
    for t in (2, 17, T):  # the rate of x_t: the prior and the terms from t + 1 to T
        assert table["rate"][t - 2] == pytest.approx(prior + kl[t - 1 :].sum())
    assert table["rate"][-1] == pytest.approx(prior)
    assert table["rmse"] ** 2 == pytest.approx(np.array(report.x0_mse[1:]))


def test_the_x0_mse_of_the_report_is_that_of_the_denoiser():
    """The x_0 error grows from t = 1 to t = T, where x_t holds almost no signal."""
    bound, report = measured()
    assert report.visits == [60] * T
    assert float(bound.visits.sum()) == T * 60
    assert all(0 < e < 4 for e in report.x0_mse)
    assert report.x0_mse[0] < report.x0_mse[-1]


@pytest.mark.parametrize("importance", [False, True])
def test_the_table_of_an_estimated_bound(importance):
    bound, exact = measured(count=300)
    _, estimate = measured(num_timesteps=5, count=300, second_moment=bound.second_moment if importance else None)
    table, expected = table_of(estimate), table_of(exact)
    assert sum(estimate.visits) == 2 * 5 * 300
    often = np.array(estimate.visits[1:]) > 20  # importance rarely samples terms near zero
    assert often.mean() > 0.5
    assert table["rmse"][often] == pytest.approx(expected["rmse"][often], rel=0.25)
    assert np.nanmedian(np.abs(table["kl"] / expected["kl"] - 1)) < 0.2
    assert table["rate"] == pytest.approx(expected["rate"], rel=0.2, abs=0.02)
    _, sparse = measured(num_timesteps=3, count=2)
    assert None in sparse.x0_mse
    assert np.isnan(table_of(sparse)["rmse"]).any()
    plots.plot_terms(table_of(sparse), "bits/dim")  # also with gaps


def test_buckets_hold_neighbouring_timesteps():
    means = plots.bucket_means(np.arange(1000.0), np.ones(1000))
    assert len(means) == plots.BUCKETS
    assert means.mean() == pytest.approx(499.5, rel=1e-2)
    assert (np.diff(means) > 0).all()
    assert np.isnan(plots.bucket_means([1.0, 0.0], [1.0, 0.0])).tolist() == [False, True]


def test_pictures_have_no_empty_axes():
    _, report = measured()
    table = table_of(report)
    for picture in (
        plots.plot_terms(table, "bits/dim"),
        plots.plot_rate(table, 2.0, "bits/dim"),
        plots.plot_rate_distortion(table, "bits/dim"),
        plots.plot_weights([1.0, 2.0], [3.0, 4.0], "X0MSE"),
    ):
        assert picture.size == (600, 400)
        assert picture.mode == "RGB"
        pixels = np.asarray(picture)[60:330, 100:580]
        blue = (pixels[..., 2].astype(int) - pixels[..., 0] > 60).sum()
        assert blue > 300  # the curve
