"""Lightning callbacks for `lit_ddpm.DDPM`."""

from lit_ddpm.callbacks.callback import DDPMCallback
from lit_ddpm.callbacks.elbo_profile import ELBOProfile
from lit_ddpm.callbacks.ema import EMA
from lit_ddpm.callbacks.execution import ChannelsLast, Compile
from lit_ddpm.callbacks.performance import Performance
from lit_ddpm.callbacks.sample_grid import SampleGrid
from lit_ddpm.callbacks.sample_metrics import SampleMetrics
from lit_ddpm.callbacks.sample_writer import SampleWriter
from lit_ddpm.training.optimization import SkipNonFinite

__all__ = [
    "EMA",
    "ChannelsLast",
    "Compile",
    "DDPMCallback",
    "ELBOProfile",
    "Performance",
    "SampleGrid",
    "SampleMetrics",
    "SampleWriter",
    "SkipNonFinite",
]
