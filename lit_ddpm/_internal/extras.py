"""Packages that only an extra of this package installs."""

import importlib
from typing import Any

from lit_ddpm._internal.checks import InputError


def import_extra(package: str, needed_by: str, extra: str | None = None) -> Any:
    """Returns a package that an extra installs; of the same name if None.

    Raises:
        ValueError: If it is not installed; the message names the installation.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise InputError(f'{needed_by} needs {package}: pip install "lit-ddpm[{extra or package}]".') from None
