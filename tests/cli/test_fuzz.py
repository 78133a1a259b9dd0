"""A hundred configurations with one mistake each: an error of one sentence, before training."""

import copy
import random
from pathlib import Path

import pytest
import yaml
from helpers import DIGITS_CONFIG

from lit_ddpm import DDPM
from lit_ddpm.__main__ import main

DIGITS = yaml.safe_load(Path(DIGITS_CONFIG).read_text())
# Settings that must be positive, by the last part of their name.
POSITIVE = {
    "width",
    "head_channels",
    "num_blocks",
    "num_steps",
    "levels",
    "lr",
    "max_lr",
    "total_steps",
    "batch_size",
    "every_n_epochs",
    "num_samples",
    "num_val_samples",
    "is_splits",
    "decay",
    "dropout",
    "pct_start",
}


def leaves(node, path=()):
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(child, (*path, key))
    else:
        yield path, node


def mappings(node, path=()):
    if isinstance(node, dict):
        yield path, node
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from mappings(child, (*path, key))


def at(config, path):
    for key in path:
        config = config[key]
    return config


def mutate(rng: random.Random) -> tuple[str, dict]:
    """A description of one mistake, and a configuration with it."""
    config = copy.deepcopy(DIGITS)
    numbers = [(p, v) for p, v in leaves(config) if isinstance(v, int | float) and not isinstance(v, bool)]
    classes = [(p, v) for p, v in leaves(config) if isinstance(v, str) and v.startswith(("lit_ddpm.", "torch."))]
    kind = rng.choice(["type", "range", "key", "class", "other class", "nesting", "scalar"])
    if kind == "type":  # text, a list or a mapping instead of a number
        path, value = rng.choice([(p, v) for p, v in numbers if p[-1] != "max_epochs"])
        new = rng.choice(["many", [value, "x"], {"value": value}])
    elif kind == "range":
        path, value = rng.choice([(p, v) for p, v in numbers if p[-1] in POSITIVE])
        new = -value - 1
    elif kind == "key":  # an unknown one
        parent, node = rng.choice([(p, n) for p, n in mappings(config) if "class_path" not in n])
        path, new = (*parent, rng.choice(list(node)) + "_x"), 1
    elif kind == "class":  # one that does not exist
        path, value = rng.choice(classes)
        new = value + rng.choice(["X", ".Y", "s"])
    elif kind == "other class":  # a class of another kind
        path, value = rng.choice(classes)
        new = "torch.nn.Linear" if not value.startswith("torch.") else "lit_ddpm.UNet"
    elif kind == "nesting":  # a block one level too deep
        path = rng.choice([p for p, n in mappings(config) if p and p[-1] == "init_args"])
        new = {"init_args": at(config, path)}
    else:  # a number instead of a block
        path, new = rng.choice([p for p, n in mappings(config) if p]), 3
    at(config, path[:-1])[path[-1]] = new
    return f"{kind}: {'.'.join(map(str, path))} = {new!r}", config


@pytest.mark.parametrize("number", range(100))
def test_a_wrong_configuration_is_one_sentence(number, monkeypatch, capsys):
    what, config = mutate(random.Random(number))
    Path("wrong.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    monkeypatch.setattr(DDPM, "training_step", lambda *args: pytest.fail(f"{what}: training began"))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "wrong.yaml"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2, what
    last = error.strip().splitlines()[-1]
    assert last.startswith("lit-ddpm: error: "), (what, last)
    assert "Traceback" not in error, what
    assert len(last) < 600, (what, last)
