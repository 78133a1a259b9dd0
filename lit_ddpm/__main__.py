"""The command ``lit-ddpm``: Lightning's ``fit``, ``validate``, ``test`` and ``predict``, and ``compare``."""

import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.cli.errors import sentence_of, stop
from lit_ddpm.training.run_directory import CONFIG


def with_config_of_run(args: Sequence[str]) -> list[str]:
    """Adds the configuration beside the checkpoint if the arguments name a checkpoint and no configuration."""
    named = [arg.split("=", 1) for arg in args]
    flags = [pair[0] for pair in named]
    if "--ckpt_path" not in flags or "--config" in flags or "-c" in flags:
        return list(args)
    at = flags.index("--ckpt_path")
    path = named[at][1] if len(named[at]) == 2 else "".join(args[at + 1 : at + 2])
    folder = Path(path).parent
    config = folder.parent / CONFIG
    of_run = folder.name == "checkpoints" and config.is_file()
    return [args[0], "--config", str(config), *args[1:]] if of_run else list(args)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command; bad input ends it with one sentence and exit code 2.

    Args:
        args: The arguments, or None for those of the process.
    """
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", ".*recommended to use `Trainer\\(devices=1.*")  # repetitions are left out
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # what is logged is of all processes already
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    try:
        arguments = list(sys.argv[1:] if args is None else args)
        if arguments[:1] == ["compare"]:
            from lit_ddpm.compare.command import run_compare  # other commands start without it

            run_compare(arguments[1:])
        else:
            DDPMCLI(with_config_of_run(arguments))
    except SIGTERMException:
        print("lit-ddpm: terminated; the run goes on with --ckpt_path.", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)  # Lightning itself would end with 0, as if the work were done
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        stop(sentence)


if __name__ == "__main__":
    main()
