"""A finished comparison."""

import pytest
from helpers import COMPARED_OBJECTIVES, DIGITS_CONFIG, SMALL_COMPARISON

from lit_ddpm.__main__ import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The directory of a small comparison, made by the command in separate processes."""
    directory = tmp_path_factory.mktemp("compare") / "runs"
    settings = ["--objectives", ",".join(COMPARED_OBJECTIVES), "--output_dir", str(directory)]
    main(["compare", "--config", DIGITS_CONFIG, *settings, *SMALL_COMPARISON])
    return directory
