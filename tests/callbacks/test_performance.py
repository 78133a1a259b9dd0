import pytest
import torch
from helpers import digits, fit, read_csv, tiny_module
from lightning.pytorch.loggers import CSVLogger

from lit_ddpm import DDPM
from lit_ddpm.callbacks import Performance


@pytest.mark.parametrize("accumulate", [1, 2])
def test_performance_is_logged_with_the_other_metrics(accumulate):
    module = tiny_module()
    run = fit(
        Performance(),
        module=module,
        data=digits(batch_size=64),
        max_epochs=1,
        log_every_n_steps=3,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(".", "", ""),
    )
    rows = [row for row in read_csv("metrics.csv") if row["perf/images_per_s"]]
    assert len(rows) == run.global_step // 3
    for row in rows:
        assert float(row["perf/images_per_s"]) > 0
        assert 0 < float(row["perf/outside_network"]) < 1
        assert 0.05 < float(row["perf/peak_memory_gib"]) < 100
        assert row["train/loss"]
    assert not module.denoiser.network._forward_hooks


def test_the_share_of_time_outside_the_network(monkeypatch):
    class Clock:
        """A clock that is advanced by hand."""

        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("lit_ddpm.callbacks.performance.time", clock)

    class ThreeSeconds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x_t, t):
            clock.now += 3
            return self.weight * x_t

    class OneSecond(DDPM):
        def on_train_batch_start(self, batch, batch_idx):
            clock.now += 1

    run = fit(
        Performance(),
        module=tiny_module(OneSecond, network=ThreeSeconds()),
        max_epochs=2,
        num_sanity_val_steps=1,
        log_every_n_steps=2,
        logger=CSVLogger(".", "", ""),
    )
    assert run.global_step == 8
    rows = [row for row in read_csv("metrics.csv") if row["perf/images_per_s"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7]
    for row in rows:  # validation is not counted
        assert float(row["perf/outside_network"]) == pytest.approx(1 / 4)
        assert float(row["perf/images_per_s"]) == pytest.approx(256 / 4)
