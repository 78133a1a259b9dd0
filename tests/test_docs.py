"""Every command and every Python block of README and documentation runs, or is marked with what it needs."""

import argparse
import gzip
import importlib
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import tomllib
from operator import attrgetter
from pathlib import Path

import lightning
import numpy as np
import pytest
from helpers import (
    PAGES,
    ROOT,
    SMALL_NETWORK,
    blocks,
    commands,
    fit_digits,
    text_of,
    write_checkpoints,
    write_image_folder,
    write_mnist,
)
from PIL import Image

import lit_ddpm
from benchmarks.__main__ import FILES
from benchmarks.common.fits import shipped_module
from benchmarks.examples import examples
from lit_ddpm.__main__ import main
from lit_ddpm.compare import command as compare_command
from lit_ddpm.likelihood.report import Report

README = text_of(ROOT / "README.md")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Two batches, since the command line reads 1 as all of them.
FEW = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 2, "limit_test_batches": 2}
QUIET = ["--trainer.callbacks=[]", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
CHANGES = (  # a tenth of the steps, a narrow network and few data
    (r"\b\d000, ", "60, "),
    (r"(LogSNRSchedule\(|CosineSchedule\(num_steps=)100\b", r"\g<1>10"),
    (r"\btarget_se=[\d.]+", "target_se=0.5"),  # of few images
    (r"\bbatch_size=\d+", "batch_size=8"),
    (r"\bDigitsDataModule\(\)", "DigitsDataModule(eval_batch_size=8)"),
    (r"\bwidth=\d+", "width=8"),
    (r"\brange\(\d+\)", "range(5)"),
    (r"\bevery_n_epochs=\d+", "every_n_epochs=1"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of the digits, with and without labels, which the pages use."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for config in ([], ["--config", "digits_conditional"]):
            fit_digits(*config, *QUIET, "--trainer.limit_val_batches=2")
    return place / "runs"


@pytest.fixture
def page_directory(runs, tmp_path, monkeypatch):
    """A directory with the runs and data of the pages; fits are short, and variants of a comparison are not trained."""
    shutil.copytree(runs, tmp_path / "runs")
    original = lightning.Trainer

    def short(**kwargs):
        return original(**{**kwargs, **FEW, "accelerator": "cpu", "enable_progress_bar": False})

    monkeypatch.setattr(lightning, "Trainer", short)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(compare_command, "compare", only_prepared)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine", None)


def only_prepared(*args):
    """Prepares a comparison and executes no run."""
    *settings, _ = args
    compare_command.prepare(*settings)
    return argparse.Namespace(missing={})


def run_command(program: str, *args: str) -> None:
    """Runs a command of a page with few images and steps."""
    if program == "lit-ddpm":
        run_lit_ddpm(*args)
    elif program == "python" and args[0] != "-m":
        file = Path(args[0])
        runpy.run_path(str(reduced(file.read_text(), file)), run_name="__main__")
    elif program == "python":
        assert args[1] == "benchmarks"
        assert args[2] in FILES
    elif program == "pip":
        extras = re.search(r"\[(.*)\]", args[-1])
        assert args[-1] == "." or set(extras[1].split(",")) <= set(EXTRAS)
    else:
        assert program in ("pytest", "mkdocs"), f"{program} is neither run nor marked"


def run_lit_ddpm(command: str, *args: str) -> None:
    few = [f"--trainer.{key}={value}" for key, value in FEW.items()]
    if command == "configs":
        extra = []
    elif command == "import":
        extra = QUIET
    elif command == "export":
        extra = ["--num_samples=2"]
    elif command == "compare" and "--models" in args:
        extra = ["--output_dir", tempfile.mkdtemp()]
    elif command == "compare":
        extra = ["--trainer.max_epochs=1", *SMALL_NETWORK]
        extra += [] if "--output_dir" in args else ["--output_dir", tempfile.mkdtemp()]
    elif command == "predict":
        extra = ["--num_samples=3", "--model.sampler.chunk_size=3"]
    elif command == "fit" and "--ckpt_path" in args:
        extra = ["--trainer.max_epochs=3", *(few if "theirs" in args[-1] else [])]
    elif command == "fit":
        network = [*SMALL_NETWORK, "--model.evaluation.num_val_timesteps=2", "--model.schedule.num_steps=100"]
        for flag, other in (
            ("--model=", ["--model.width=8"]),
            ("--model.network=", ["--model.evaluation.num_val_timesteps=2"]),
        ):
            network = other if any(arg.startswith(flag) for arg in args) else network
        often = ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0"]
        extra = [*few, *often, *QUIET, *network, "--data.eval_batch_size=8", "--number_run=true"]
    else:
        extra = [*few, "--data.eval_batch_size=4"]
        extra += ["--model.schedule.num_steps=100" for arg in args if arg.startswith("--model.schedule.num_steps=")]
    extra += ["--target_se=0.5"] if "--target_se" in args else []  # of few images
    main([command, *args, *extra])


def reduced(program: str, file: Path) -> Path:
    """Writes a program with few steps to a file and returns the file."""
    for pattern, replacement in CHANGES:
        program = re.sub(pattern, replacement, program)
    file.write_text(program)
    return file


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_block_of_a_page_runs(page, page_directory):
    text = text_of(page).partition("## Without Lightning")[0]  # see test_the_program_without_lightning
    found = [block for block in blocks(text) if block.runs_here]
    if "DIRECTORY" in text:
        write_mnist(".", "DIRECTORY", train=1, test=10_000)
        for file in Path("DIRECTORY/raw").glob("t10k*"):
            Path("DIRECTORY", f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), 1))
    for folder in ("my_images", "tiles"):
        if folder in text:
            write_image_folder(folder, count=100, size=(32, 32))
    if page.stem == "models":
        write_checkpoints()
    for block in found:
        if "." in block.title:
            Path(block.title).write_text(block.text)
    for block in found:
        if block.language == "bash":
            for command in commands(block):
                run_command(*command)
    if page.suffix == ".ipynb":
        return  # its cells run in test_notebooks
    script = "\n".join(block.text for block in found if block.language == "python" and not block.title)
    reduced(script, Path("page.py"))
    before = set(Path().rglob("*"))
    runpy.run_path("page.py", run_name="__main__")
    written = {path.name for path in set(Path().rglob("*")) - before}
    assert any(name.startswith("step_") for name in written) == ("SampleGrid(" in script)
    reports = set(Path().rglob("bound.json")) - before
    assert len(reports) == script.count(".test(")
    for name, program in examples().items():
        if program in text:
            check_example(name, program)


def check_example(name: str, program: str) -> None:
    """Checks the grid and the report of an example that trains into ``runs/NAME``."""
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    assert (ROOT / "docs" / "data" / f"{name}.png").is_file()
    (grid,) = Path("runs", name).rglob("step_*.png")
    assert np.asarray(Image.open(grid)).std() > 5
    (file,) = Path("runs", name).rglob("bound.json")
    report = Report.load(file)
    assert report.unit == ("nats/dim" if name in ("waves", "bands") else "bits/dim")
    assert report.conditioned_on == (("cond",) if name == "superres" else ())


def test_the_examples_are_those_of_the_pages():
    assert set(examples()) == {"scans", "waves", "spheres", "bands", "superres"}


def test_contributing_has_the_benchmark_of_every_page():
    rows = [line.split("|")[1:3] for line in text_of(ROOT / "CONTRIBUTING.md").splitlines() if "| `python" in line]
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        listed = " ".join(commands for figures, commands in rows if name in figures)
        for benchmark in re.findall(r"python -m benchmarks ([a-z_]+)", text_of(page)):
            assert re.search(rf"\b{benchmark}\b", listed), (name, benchmark)


def test_the_readme_begins_with_a_program_and_two_commands():
    program, shell, *_ = blocks(README)
    assert (program.language, shell.language) == ("python", "bash")
    assert len([line for line in program.text.splitlines() if line.strip()]) <= 20
    assert all(call in program.text for call in ("trainer.fit(", "trainer.test(", "model.sample("))
    first, second = shell.text.splitlines()
    assert first.startswith("pip install -e . && lit-ddpm fit --config digits && lit-ddpm test")
    assert second == 'pip install -e ".[test]" && pytest'


def test_the_program_of_the_readme_trains_the_shipped_model(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(blocks(README)[0].text.split("trainer = ")[0])
    module, shipped = runpy.run_path(str(file))["model"], shipped_module("digits")
    parts = ("schedule", "parametrization", "network.time", "network")
    assert [str(attrgetter(part)(module.denoiser)) for part in parts] == [
        str(attrgetter(part)(shipped.denoiser)) for part in parts
    ]
    assert [str(part) for part in (module.objective, module.timesteps)] == [
        str(part) for part in (shipped.objective, shipped.timesteps)
    ]


def test_the_readme_has_the_version_in_its_citation():
    assert f"version = {{{lit_ddpm.__version__}}}" in README


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.]+)\)|src=\"([\w/.]+)\"", README))), ids="".join)
def test_linked_files_of_the_readme_exist(path):
    assert (ROOT / "".join(path)).exists()


def test_the_program_without_lightning():
    section = text_of(ROOT / "docs" / "extending.md").split("## Without Lightning")[1]
    first, *others = (block.text.replace("width=16", "width=8, num_blocks=1") for block in blocks(section))
    assert len([line for line in first.split("\n\n")[1].splitlines() if line.strip()]) == 10
    program = "\n".join(["import sys", "sys.modules['lightning'] = None  # importing it raises", first, *others])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pilot, whole, chosen, exact = done.stdout.split("term ")[1:]
    assert "20 random timesteps of 100" in pilot
    assert "100 images, 100 network calls" in whole
    assert "random timesteps of 100" in chosen
    assert "exact likelihood" in exact


def test_the_reference_has_every_public_name():
    """The build of the site fails for a name that does not exist."""
    entries = [
        e
        for page in PAGES
        if page.parent.name == "reference"
        for e in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    ]
    assert len(entries) == len(set(entries))
    names = {f"lit_ddpm.{name}" for name in lit_ddpm.__all__}
    for package in ("nn", "data", "callbacks", "metrics", "pipelines", "compare"):
        names |= {f"lit_ddpm.{package}.{name}" for name in importlib.import_module(f"lit_ddpm.{package}").__all__}
    assert set(entries) == names - {"lit_ddpm.nn.UNet"}  # lit_ddpm.UNet
