"""Bounds with two decimals that are still bounds."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

_HUNDREDTH = Decimal("0.01")


def up(bound: float) -> str:
    """An upper bound, rounded to a number that is not below it.

    Example:
        >>> up(2.301)
        '2.31'
    """
    return str(Decimal(bound).quantize(_HUNDREDTH, rounding=ROUND_CEILING))


def down(bound: float) -> str:
    """A lower bound, rounded to a number that is not above it.

    Example:
        >>> down(2.309)
        '2.30'
    """
    return str(Decimal(bound).quantize(_HUNDREDTH, rounding=ROUND_FLOOR))
