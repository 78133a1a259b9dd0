"""The end of a command on bad input."""

import sys
from typing import NoReturn


def stop(message: str) -> NoReturn:
    """Ends the process with one line on stderr and exit code 2."""
    print(f"lit-ddpm: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
