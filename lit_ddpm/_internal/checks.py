"""Bad input, and checks of settings."""

from collections.abc import Collection


class InputError(ValueError):
    """Bad input: a setting, file or dataset that cannot be used. The message names it and says what is allowed."""


class NonFiniteError(InputError, FloatingPointError):
    """A training that stopped because its gradients or weights are not finite."""


def check_at_least(owner: object, least: float, **settings: float | None) -> None:
    """Raises a ValueError for the first setting of `owner` that is less than `least`; None is allowed."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise InputError(f"{name} = {value} of {type(owner).__name__} must be at least {least}.")


def check_positive(owner: object, **settings: float) -> None:
    """Raises a ValueError for the first setting of `owner` that is not positive."""
    for name, value in settings.items():
        if not value > 0:  # in this form NaN is refused
            raise InputError(f"{name} = {value} of {type(owner).__name__} must be positive.")


def check_type(owner: object, kind: type, **settings: object) -> None:
    """Raises an `InputError` for the first setting of `owner` that is not an instance of a class."""
    for name, value in settings.items():
        if not isinstance(value, kind):
            found = value.__name__ if isinstance(value, type) else repr(value)
            raise InputError(f"{name} = {found} of {type(owner).__name__} must be an instance of {kind.__name__}.")


def check_one_of(owner: str, allowed: Collection[object], **settings: object) -> None:
    """Raises a ValueError for the first setting that is not among the values `allowed`."""
    for name, value in settings.items():
        if value not in allowed:
            raise InputError(f"{name} = {value!r} of {owner} must be one of {', '.join(map(str, allowed))}.")
