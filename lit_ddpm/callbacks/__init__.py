"""Lightning callbacks for `lit_ddpm.DDPM`."""

from lit_ddpm.callbacks.callback import DDPMCallback
from lit_ddpm.callbacks.elbo_profile import ELBOProfile
from lit_ddpm.callbacks.ema import EMA
from lit_ddpm.callbacks.performance import Performance
from lit_ddpm.callbacks.sample_grid import SampleGrid
from lit_ddpm.callbacks.sample_metrics import SampleMetrics
from lit_ddpm.callbacks.sample_writer import SampleWriter

__all__ = ["EMA", "DDPMCallback", "ELBOProfile", "Performance", "SampleGrid", "SampleMetrics", "SampleWriter"]
