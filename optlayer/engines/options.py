"""A solver's options by its own names."""

from typing import Any

from optlayer.errors import DeclarationError


def assign(solver: str, settings: Any, options: dict[str, Any]) -> None:
    """Set attributes of a solver's settings.

    Raises:
        DeclarationError: for one that it does not have, with those that it has, or a value that it refuses.
    """
    for option, value in options.items():
        if not hasattr(settings, option):
            known = ", ".join(a for a in dir(settings) if not a.startswith("_"))
            raise DeclarationError(f"{solver} has no option {option!r}; it has {known}")
        try:
            setattr(settings, option, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise DeclarationError(f"{solver} refuses {option}={value!r}: {error}") from error
