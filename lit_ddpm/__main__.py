"""The command ``lit-ddpm``: Lightning's ``fit``, ``validate``, ``test``, ``predict``, and our own."""

import logging
import signal
import sys
import warnings
from collections.abc import Sequence

from lit_ddpm._internal.stop import stop

COMMANDS = ("fit", "validate", "test", "predict", "gradients", "compare", "import", "export", "configs")

HELP = """usage: lit-ddpm COMMAND [options]

Trains, measures, samples and compares denoising diffusion models.

  fit        trains a model                       lit-ddpm fit --config digits
  test       measures the exact bound and FID     lit-ddpm test --ckpt_path runs/digits/checkpoints/best.ckpt
  validate   estimates the bound                  lit-ddpm validate --ckpt_path runs/digits/checkpoints/best.ckpt
  predict    draws samples into files             lit-ddpm predict --ckpt_path runs/digits/checkpoints/best.ckpt
  gradients  measures the gradient by timestep    lit-ddpm gradients --ckpt_path runs/digits/checkpoints/best.ckpt
  compare    trains objectives on equal terms     lit-ddpm compare --config digits --objectives kl,x0_mse
  import     reads a model of diffusers           lit-ddpm import DIRECTORY --data cifar10
  export     writes a model for diffusers         lit-ddpm export --ckpt_path BEST.ckpt --output_dir DIRECTORY
  configs    lists the shipped configurations     lit-ddpm configs digits > mine.yaml

`lit-ddpm COMMAND --help` lists the options of a command; `lit-ddpm --version` prints the version."""

IRRELEVANT_WARNINGS = (
    ".*args parameter is intended to run from within Python.*",
    ".*does not have many workers.*",  # the data is in memory
    ".*LeafSpec.*is deprecated.*",  # Lightning's own use of torch
    ".*recommended to use `Trainer\\(devices=1.*",  # repeated images are not counted
    ".*sync_dist=True.*",  # logged values are reduced over ranks already
)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command; bad input ends it with one sentence and exit code 2.

    Args:
        args: The arguments, or None for those of the process.
    """
    command, *options = (sys.argv[1:] if args is None else args) or ["--help"]
    if command in ("--help", "-h"):
        print(HELP)
    elif command == "--version":
        from lit_ddpm import __version__

        print(f"lit-ddpm {__version__}")
    elif command in COMMANDS or command.startswith("-"):
        _run(command, options)
    else:
        stop(f"{command!r} is not a command: it must be {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}.")


def _run(command: str, options: list[str]) -> None:
    """Imports and runs a command; Lightning takes seconds to import, and the others start without it."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from lit_ddpm.cli.errors import sentence_of

    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    try:
        if command == "configs":
            from lit_ddpm.cli.configs import run_configs

            run_configs(options)
        elif command == "compare":
            from lit_ddpm.compare.command import run_compare

            run_compare(options)
        elif command in ("import", "export"):
            from lit_ddpm.pipelines import commands

            {"import": commands.run_import, "export": commands.run_export}[command](options)
        else:
            from lit_ddpm.cli.app import DDPMCLI
            from lit_ddpm.cli.arguments import with_run_config

            DDPMCLI(with_run_config([command, *options]))
    except SIGTERMException:
        print("lit-ddpm: terminated; resume with --ckpt_path.", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)  # Lightning would end with 0, as if the work were done
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        stop(sentence)


if __name__ == "__main__":
    main()
