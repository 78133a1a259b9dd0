"""The examples of the documentation run."""

import re
from pathlib import Path

import lightning
import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from benchmarks.examples import examples
from lit_ddpm.diffusion.ledger import Report


def small(program: str) -> str:
    """A program with a tenth of its steps, a narrow network and few data."""
    changes = (
        (r"\b\d000, ", "60, "),
        (r"\b100\b", "10"),
        (r"batch_size=\d+", "batch_size=8"),
        (r"width=\d+", "width=8"),
    )
    for pattern, replacement in changes:
        program = re.sub(pattern, replacement, program)
    return program


@pytest.mark.parametrize(("name", "program"), examples().items())
def test_every_example_of_data(name, program, monkeypatch):
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    assert (ROOT / "docs" / "data" / f"{name}.png").is_file()
    original = lightning.Trainer

    def short(**kwargs):
        few = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}
        return original(**{**kwargs, **few, "accelerator": "cpu", "enable_progress_bar": False})

    monkeypatch.setattr(lightning, "Trainer", short)
    exec(small(program), {})
    (grid,) = Path("runs", name).rglob("step_*.png")
    assert np.asarray(Image.open(grid)).std() > 5
    (ledger,) = Path("runs", name).rglob("ledger.json")
    report = Report.load(ledger)
    assert report.unit == ("nats/dim" if name in ("waves", "bands") else "bits/dim")
    assert report.given == (("cond",) if name == "superres" else ())


def test_the_examples_are_those_that_the_page_promises():
    assert set(examples()) == {"scans", "waves", "spheres", "bands", "superres"}
