"""The scalar fields of a certificate, and what each may be in a file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any


class Status(Enum):
    """How the search for the bound ended. The value is the sentence for the user; the bound is verified in each case
    but the last two."""

    SOLVED = "The method reached its tolerance; the bound is verified."
    ALMOST_SOLVED = "The method stopped short of its tolerance; the bound is verified, but a tighter one may exist."
    TIME_LIMIT = "The time limit was reached; the bound is verified, but a tighter one may exist."
    FALLBACK = "The method failed; the bound is verified and comes from a simpler method."
    FAILED = "No method gave a bound that could be verified."
    NOT_A_BOUND = "For reproduction only: the number is not an upper bound."

    @property
    def proves(self) -> bool:
        """Whether there is a bound that was verified."""
        return self not in (Status.FAILED, Status.NOT_A_BOUND)


def read_scalars(given: Mapping[str, Any]) -> dict[str, Any]:
    """The scalar fields in ``given``, each of its type, ``status`` a Status.

    Raises:
        ValueError: a field that is missing, of another type or out of its range, or two that contradict each other.

    Example:
        >>> read_scalars({"upper_bound": "2"})
        Traceback (most recent call last):
        ValueError: `upper_bound` must be a number >= 0; it is '2'
    """
    found = {}
    for name, (accepted, read) in _FIELDS.items():
        value = given.get(name)
        try:
            found[name] = read(value)
        except (TypeError, ValueError, KeyError, OverflowError):
            raise ValueError(f"`{name}` must be {accepted}; it is {_short(value)}") from None
    bounded = found["status"].proves and math.isfinite(found["upper_bound"])
    if found["certified"] and not bounded:
        raise ValueError(f"a certified bound cannot be {found['upper_bound']!r} with the status {given['status']}")
    return found


def number(value: Any) -> float:
    """A float or an int that is not too large for one, as a float.

    Raises:
        TypeError, OverflowError: it is not.
    """
    if type(value) not in (int, float):
        raise TypeError
    return float(value)


def count(value: Any) -> int:
    """An int >= 0.

    Raises:
        TypeError, ValueError: it is not.
    """
    if type(value) is not int:
        raise TypeError
    if not 0 <= value < 2**63:
        raise ValueError
    return value


def _at_least_zero(value: Any) -> float:
    read = number(value)
    if not read >= 0:
        raise ValueError
    return read


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise TypeError
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or re.fullmatch("[0-9a-f]{64}", value) is None:
        raise TypeError
    return value


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _short(value: Any) -> str:
    """Some letters of it; of what is not a plain value, its type."""
    plain = isinstance(value, (str, float, bool, type(None))) or (type(value) is int and abs(value) < 10**18)
    shown = repr(value[:40] if isinstance(value, str) else value) if plain else f"of type {type(value).__name__}"
    return f"{shown}..." if isinstance(value, str) and len(value) > 40 else shown


_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "upper_bound": ("a number >= 0", _at_least_zero),
    "certified": ("true or false", _flag),
    "status": (f"one of {', '.join(Status.__members__)}", lambda value: Status[value]),
    "method": ("a word", _word),
    "solver": ("a word", _word),
    "relative_gap": ("a number or null", _or_none(number)),
    "verification_loss": ("a number", number),
    "seconds": ("a number >= 0", _at_least_zero),
    "network_digest": ("a SHA-256 in hexadecimal digits", _digest),
    "epoch": ("a whole number >= 0 or null", _or_none(count)),
    "global_step": ("a whole number >= 0 or null", _or_none(count)),
}
SCALARS = tuple(_FIELDS)
