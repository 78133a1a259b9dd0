"""The command ``lit-ddpm``: Lightning's ``fit``, ``validate``, ``test`` and ``predict``, and ``compare``."""

import logging
import signal
import sys
import warnings
from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_ddpm.cli.app import DDPMCLI
from lit_ddpm.cli.arguments import with_run_config
from lit_ddpm.cli.errors import sentence_of, stop

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
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    try:
        arguments = list(sys.argv[1:] if args is None else args)
        if arguments[:1] == ["compare"]:
            from lit_ddpm.compare.command import run_compare  # other commands start without it

            run_compare(arguments[1:])
        else:
            DDPMCLI(with_run_config(arguments))
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
