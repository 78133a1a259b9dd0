"""A finished comparison."""

import pytest
from helpers import COMPARED_OBJECTIVES, DIGITS_CONFIG, SMALL_COMPARISON, run_here

from lit_ddpm.__main__ import main
from lit_ddpm.compare.runs import Run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The directory of a small comparison, made by the command."""
    directory = tmp_path_factory.mktemp("compare") / "runs"
    settings = ["--objectives", ",".join(COMPARED_OBJECTIVES), "--output_dir", str(directory)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_run_process", run_here)
        main(["compare", "--config", DIGITS_CONFIG, *settings, *SMALL_COMPARISON])
    return directory


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the commands of a comparison here, since a new process takes five seconds to start."""
    monkeypatch.setattr(Run, "_run_process", run_here)
