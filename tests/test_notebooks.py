"""The notebooks of the documentation run, and are kept with their outputs."""

import nbformat
import pytest

from benchmarks.notebooks import NOTEBOOKS, run, without_progress

SMALL = {"lecture": "TRAINING_STEPS = 50", "images": "EPOCHS, WIDTH, NUM_STEPS = 1, 8, 8"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    notebook = run(NOTEBOOKS[name], SMALL[name])
    kept = nbformat.read(NOTEBOOKS[name], as_version=4)
    kinds = [[output.output_type for output in cell.get("outputs", [])] for cell in notebook.cells]
    assert kinds == [[output.output_type for output in cell.get("outputs", [])] for cell in kept.cells]
    assert sum("display_data" in kind for kind in kinds) >= 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_kept_outputs_are_of_one_run(name):
    kept = nbformat.read(NOTEBOOKS[name], as_version=4)
    counts = [cell.execution_count for cell in kept.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_progress_is_not_kept():
    printed = ["loss 0.1\nEpoch 0:  4%| | 1/25 [00:00, 3.63it/s]\r", "\nbits/dim 1.8\n"]
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in printed]
    outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a message"))
    (output,) = without_progress(outputs)
    assert output.text == "loss 0.1\nbits/dim 1.8\n"
