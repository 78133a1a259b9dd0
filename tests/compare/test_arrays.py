"""A comparison on real-valued sequences with conditions."""

import numpy as np
import pytest
from helpers import read_csv

from lit_ddpm.compare import compare


@pytest.mark.usefixtures("in_this_process")
def test_sequences_with_conditions_are_compared(tmp_path):
    waves = 20 + np.sin(np.random.default_rng(0).uniform(0, 6, (60, 1, 1)) + np.linspace(0, 6, 16))
    np.save(tmp_path / "waves.npy", waves)
    settings = f"""
model:
  class_path: lit_ddpm.DDPM
  init_args:
    network:
      class_path: lit_ddpm.UNet
      init_args: {{dims: 1, width: 8, multipliers: [1], num_blocks: 1, attention_levels: [], cond_channels: 1}}
    schedule: {{class_path: lit_ddpm.CosineSchedule, init_args: {{num_steps: 10}}}}
    parametrization: lit_ddpm.VParametrization
    condition: lit_ddpm.LowResolution
data:
  class_path: lit_ddpm.data.ArrayDataModule
  init_args: {{data: {tmp_path / "waves.npy"}, batch_size: 16}}
trainer: {{max_epochs: 1, accelerator: cpu}}
"""
    (tmp_path / "waves.yaml").write_text(settings)
    result = compare([tmp_path / "waves.yaml"], ["x0_mse"], output_dir=tmp_path / "runs")
    assert not result.missing
    (row,) = read_csv(tmp_path / "runs" / "table.csv")
    assert np.isfinite(float(row["nats/dim"]))
    assert result.results["x0_mse"][0].report.conditioned_on == ("cond",)
    assert '<div class="samples">\n<figure><img' in (tmp_path / "runs" / "report.html").read_text()
