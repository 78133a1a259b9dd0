"""Shipped configurations by name, and the overview of the commands."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CONFIGS, error_of

import lit_ddpm
from lit_ddpm.__main__ import COMMANDS, main
from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.cli.configs import find_config, shipped_configs


def test_every_configuration_has_a_name_of_its_own():
    files = {path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "base"}
    assert {path.resolve() for path in shipped_configs().values()} == {path.resolve() for path in files}


def test_names_work_everywhere_a_file_does(capsys):
    cli = DDPMCLI(["--config", "digits", "--config=digits_conditional", "-c", "bf16"], run=False)
    assert cli.model.denoiser.network_spec.num_classes == 10
    assert cli.trainer.precision == "bf16-mixed"
    Path("mine.yaml").write_text("extends: digits\ntrainer: {max_epochs: 3}")
    assert DDPMCLI(["--config=mine.yaml"], run=False).trainer.max_epochs == 3


def test_a_file_wins_over_a_name():
    assert find_config("digits").name == "digits.yaml"
    Path("digits").write_text("trainer: {max_epochs: 7}")
    assert find_config("digits") == Path("digits")


def test_the_list_has_a_line_for_each(capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    named = dict(line.strip().split(maxsplit=1) for line in lines if line.startswith("  "))
    assert set(named) == set(shipped_configs())
    assert max(map(len, lines)) <= 120
    main(["configs", "digits"])
    assert capsys.readouterr().out == (CONFIGS / "digits.yaml").read_text()


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_the_overview_has_every_command(args, capsys):
    main(args)
    out = capsys.readouterr().out
    for command in (*DDPMCLI.subcommands(), "compare", "configs"):
        assert f"\n  {command} " in out
        assert f"lit-ddpm {command} " in out


def test_the_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"lit-ddpm {lit_ddpm.__version__}\n"


def test_help_and_version_start_without_lightning():
    """Importing it takes seconds."""
    assert (*DDPMCLI.subcommands(), "compare", "import", "export", "configs") == COMMANDS
    program = (
        "import sys; from lit_ddpm.__main__ import main; main([sys.argv[1]]); assert 'lightning' not in sys.modules"
    )
    for option in ("--help", "--version"):
        subprocess.run([sys.executable, "-c", program, option], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--config", "digts"], "config = digts is neither a file nor a shipped configuration: digits,"),
        (["fit", "--config=runs/none.yaml"], "config = runs/none.yaml is neither a file nor a shipped configuration"),
        (["configs", "zzz"], "name = zzz is neither a file nor a shipped configuration: cifar10,"),
        (["compare", "--config", "digts", "--objectives", "kl"], "config = digts is neither a file"),
        (
            ["train"],
            "'train' is not a command: it must be fit, validate, test, predict, gradients, compare, import, export or "
            "configs.",
        ),
        (
            ["fit", "--model.objective=KL"],
            "model.objective = KL is not a class: it must be one of HybridObjective, Post",
        ),
        (["fit", "--model.schedule=Lin"], "or the import path of another Schedule."),
        (["fit", "--data=Foo"], "data = Foo is not a class: it must be one of ArrayDataModule, DigitsDataModule,"),
        (
            ["fit", "--trainer.callbacks+=Foo"],
            "Foo is not a class: it must be one of ChannelsLast, Compile, DDPMCallback",
        ),
    ],
)
def test_a_wrong_name_lists_those_there_are(args, message, capsys):
    assert message in error_of(capsys, args)
