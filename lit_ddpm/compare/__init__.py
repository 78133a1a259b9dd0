"""Comparisons of objectives, or of any other part of a configuration, on equal terms."""

from lit_ddpm.compare.audit import Audit, audit
from lit_ddpm.compare.command import collect, compare, prepare, run
from lit_ddpm.compare.comparison import Comparison
from lit_ddpm.compare.measurement import Measurement
from lit_ddpm.compare.plan import Plan

__all__ = ["Audit", "Comparison", "Measurement", "Plan", "audit", "collect", "compare", "prepare", "run"]
