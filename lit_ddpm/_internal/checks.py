"""Checks of settings."""


def check_at_least(owner: object, least: int, **settings: int | None) -> None:
    """Raises a ValueError that names the first of an object's settings that is less than `least`; None is let pass."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise ValueError(f"{name} = {value} of {type(owner).__name__} must be at least {least}.")
