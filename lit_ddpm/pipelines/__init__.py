"""Pipelines of the library diffusers, read and written."""

from lit_ddpm.pipelines.load import load_pipeline
from lit_ddpm.pipelines.save import save_pipeline

__all__ = ["load_pipeline", "save_pipeline"]
