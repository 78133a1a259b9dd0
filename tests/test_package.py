"""The package as it is installed, outside of the repository."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers import CONFIGS, ROOT, environment_with, run_isolated

import lit_ddpm


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with the sdist and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run_isolated(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


def files_of(package: Path) -> set[str]:
    return {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_contents(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert {f"lit_ddpm/{name}" for name in files_of(ROOT / "lit_ddpm")} <= in_wheel
    assert {f"lit_ddpm/configs/{name}" for name in files_of(CONFIGS)} <= in_wheel
    assert {name.split("/")[0] for name in in_wheel} == {
        "lit_ddpm",
        wheel.name.replace("-py3-none-any.whl", ".dist-info"),
    }
    with tarfile.open(sdist) as archive:
        roots, _, in_sdist = zip(*(name.partition("/") for name in archive.getnames()), strict=True)
    assert {"README.md", "LICENSE", "CHANGELOG.md", "tests/test_package.py", "configs/digits.yaml"} <= set(in_sdist)
    assert set(roots) == {sdist.name.removesuffix(".tar.gz")}


def test_the_citation_has_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == lit_ddpm.__version__


def test_an_installed_wheel_fits_outside_of_the_repository(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    python = environment_with(tmp_path / "venv", wheel)
    work = tmp_path / "work"
    work.mkdir()
    origin = run_isolated(python, "-c", "import lit_ddpm; print(lit_ddpm.__file__)", cwd=work)
    assert str(tmp_path / "venv") in origin
    command = python.with_name("lit-ddpm")
    assert "digits" in run_isolated(command, "configs", cwd=work)
    run_isolated(command, "fit", "--config", "digits", "--trainer.fast_dev_run=true", cwd=work)


def test_the_readme_of_the_package_index(built):
    """It has no pictures and no links into the repository, which a package index cannot show."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        readme = archive.read(metadata).decode().split("\n\n", 1)[1]
    assert "pip install lit-ddpm && lit-ddpm fit --config digits" in readme
    assert not re.search(r"<img|\]\((?!https?:)|docs/\)|\[test\]|\(left\)", readme)
    assert re.search(r"^total +\d\.\d{4} ", readme, re.MULTILINE)
