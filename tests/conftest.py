"""A clean environment for each test, and a parameter over the schedules."""

import logging
import os

import pytest
import torch
from helpers import SCHEDULES, forget_processes

from lit_ddpm import Schedule

# Lightning's logger propagates only if the root logger has a handler when it is imported, which depends on pytest.
logging.getLogger("lightning.pytorch").propagate = True

# Two workers share the cores. A process that forks must have no OpenMP threads, or its child deadlocks.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    """Runs each test in its own directory, as a single process, without the seed of another test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    forget_processes()
    yield
    forget_processes()  # before the next test: fixtures of a wider scope are made ahead of this one


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request) -> Schedule:
    return request.param
