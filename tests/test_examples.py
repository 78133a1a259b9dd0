"""The downstream projects in examples/: installed next to the package, each passes its own tests."""

import pytest
from helpers import ROOT, build_wheel, environment_with, run_isolated

PROJECTS = sorted(path.parent for path in (ROOT / "examples").glob("*/pyproject.toml"))


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_a_downstream_project_passes_its_tests(project, tmp_path):
    wheels = [build_wheel(path, tmp_path / path.name) for path in (ROOT, project)]
    python = environment_with(tmp_path / "venv", *wheels)
    work = tmp_path / "work"
    work.mkdir()
    passed = run_isolated(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", project / "tests", cwd=work)
    assert "passed" in passed
    assert "skipped" not in passed


def test_there_is_a_project():
    assert PROJECTS
