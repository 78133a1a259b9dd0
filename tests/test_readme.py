"""The code blocks and links of the README."""

import os
import re
import subprocess
import sys

import lightning
import pytest
from helpers import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_two_commands_are_the_first_block():
    first = re.search(r"```bash\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert first[0].startswith("pip install -e . && lit-ddpm fit --config digits && lit-ddpm test")
    assert first[1] == 'pip install -e ".[test]" && pytest'


def test_the_subclass_runs_from_command_line_and_python(monkeypatch, tmp_path):
    _, _, subclass, script = BLOCKS
    (tmp_path / "mine.py").write_text(subclass)
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--model.width=8", "--data.eval_batch_size=360"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_ddpm", "fit", "--model=mine.MyDDPM", *few]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr

    monkeypatch.syspath_prepend(str(tmp_path))
    few = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1, "enable_progress_bar": False}
    original = lightning.Trainer

    def short(*args, **kwargs):
        return original(
            *args, **{**kwargs, **few, "accelerator": "cpu", "max_epochs": 20, "check_val_every_n_epoch": 20}
        )

    monkeypatch.setattr(lightning, "Trainer", short)
    exec(script.replace("width=16", "width=8"), {})
    assert list(tmp_path.rglob("step_*.png"))
    assert list(tmp_path.rglob("ledger.json"))


def test_the_first_program_runs_without_lightning():
    first, second = BLOCKS[:2]
    assert len([line for line in first.split("\n\n")[1].splitlines() if line.strip()]) == 10
    program = "import sys\nsys.modules['lightning'] = None  # importing it raises\n" + first + second
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "bits/dim" in done.stdout


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|docs)/[\w/.]+\w", README))))
def test_linked_files_exist(path):
    assert (ROOT / path).exists()
