"""Numbers as they are printed: what is an upper bound stays one when it is rounded, and so does a lower bound."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal


def upper(value: float | None, digits: int = 5) -> str:
    """Rounded up to so many significant digits.

    Example:
        >>> upper(148.00012), upper(0.1), upper(None), upper(math.inf)
        ('148.01', '0.10001', '–', '∞')
    """
    return _printed(value, digits, ROUND_CEILING)


def lower(value: float | None, digits: int = 5) -> str:
    """Rounded down.

    Example:
        >>> lower(148.00999), lower(2.0)
        ('148', '2')
    """
    return _printed(value, digits, ROUND_FLOOR)


def near(value: float | None, digits: int = 3) -> str:
    """Rounded to the nearest: of what is no bound.

    Example:
        >>> near(1.2345), near(3.2e-9)
        ('1.23', '3.2e-9')
    """
    return _printed(value, digits, ROUND_HALF_EVEN)


def hundredths_up(bound: float) -> str:
    """An upper bound with two decimals, not below it.

    Example:
        >>> hundredths_up(2.301), hundredths_down(2.309)
        ('2.31', '2.30')
    """
    return _decimals(bound, "0.01", ROUND_CEILING)


def hundredths_down(bound: float) -> str:
    """A lower bound with two decimals, not above it."""
    return _decimals(bound, "0.01", ROUND_FLOOR)


def percent(share: float | None) -> str:
    """A share that is claimed to be reached, in per cent, rounded down to tenths.

    Example:
        >>> percent(0.97777), percent(1.0)
        ('97.7 %', '100.0 %')
    """
    if share is None:
        return "–"
    return _decimals(Decimal(share) * 100, "0.1", ROUND_FLOOR) + " %"


def _decimals(value: float | Decimal, last: str, rounding: str) -> str:
    return str(Decimal(value).quantize(Decimal(last), rounding=rounding))


def _printed(value: float | None, digits: int, rounding: str) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = Context(prec=digits, rounding=rounding).plus(Decimal(value)).normalize()
    plain = rounded == 0 or 1e-4 <= abs(rounded) < 1e7
    return f"{rounded:f}" if plain else f"{rounded:e}".replace("e+", "e")
