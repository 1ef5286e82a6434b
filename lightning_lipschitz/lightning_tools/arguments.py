"""Constructor arguments: what is wrong is said before a Trainer exists. All raise as :func:`require`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.errors import ArgumentError


def require(condition: bool, owner: str, name: str, value: Any, accepted: str) -> None:
    """Raise unless ``condition``.

    Raises:
        MisconfigurationException: naming the argument, the accepted values and the value.
    """
    if not condition:
        raise MisconfigurationException(f"`{owner}({name}={value!r})`: `{name}` must be {accepted}, got {value!r}.")


@contextlib.contextmanager
def arguments_of(owner: str) -> Iterator[None]:
    """Arguments that another room checks, refused as those of a callback are."""
    try:
        yield
    except ArgumentError as error:
        require(False, owner, error.name, error.found, error.accepted)


def require_choice(owner: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """One of some words."""
    accepted = ", ".join(repr(choice) for choice in choices)
    require(isinstance(value, str) and value in choices, owner, name, value, f"one of {accepted}")


def require_count(owner: str, name: str, value: Any) -> None:
    """An integer >= 1."""
    require(type(value) is int and value >= 1, owner, name, value, "an int >= 1")


def require_positive(owner: str, name: str, value: Any, optional: bool = False) -> None:
    """A finite number > 0, or None if that is allowed."""
    if not (optional and value is None):
        accepted = "a finite number > 0" + (" or None" if optional else "")
        require(_is_number(value) and 0 < value < math.inf, owner, name, value, accepted)


def require_fraction(owner: str, name: str, value: Any) -> None:
    """A number between 0 and 1."""
    require(_is_number(value) and 0 < value < 1, owner, name, value, "a number between 0 and 1")


def require_flag(owner: str, name: str, value: Any) -> None:
    """True or False."""
    require(isinstance(value, bool), owner, name, value, "True or False")


def require_radii(owner: str, name: str, value: Any) -> None:
    """A list of distances, no two of which would be logged under one name."""
    listed = isinstance(value, (list, tuple)) and all(_is_number(radius) and 0 <= radius < math.inf for radius in value)
    accepted = "a list of different finite distances >= 0"
    require(listed and len({f"{radius:g}" for radius in value}) == len(value), owner, name, value, accepted)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and type(value) is not bool
