"""A finished run of the shipped configuration."""

import os

import pytest
from helpers import fit_digits


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The directory of a small run of the shipped configuration. Tests that write to it use `copy_run`."""
    place = tmp_path_factory.mktemp("run")
    before = os.getcwd()
    os.chdir(place)
    try:
        fit_digits()
    finally:
        os.chdir(before)
    return place / "runs" / "digits"
