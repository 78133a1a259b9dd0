"""Comparisons of objectives, or of any other part of a configuration, on equal terms."""

from lit_ddpm.compare.audit import Audit, audit
from lit_ddpm.compare.command import compare
from lit_ddpm.compare.comparison import Comparison, Value

__all__ = ["Audit", "Comparison", "Value", "audit", "compare"]
