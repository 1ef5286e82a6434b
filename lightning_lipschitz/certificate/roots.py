"""Roots of unity with a known error, whatever the platform's sine does."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np

from lightning_lipschitz.graph.arrays import Array

ROOT_ERROR = 2.0**-53  # of every number in the table, absolute
_BITS = 256  # of the fixed-point arithmetic; n products lose some n units of its last place


@lru_cache(maxsize=64)
def roots_of_unity(n: int) -> tuple[Array, Array]:
    """``(cos(2 pi j / n), sin(2 pi j / n))`` for j = 0 ... n - 1, each within ``ROOT_ERROR``; n below 2^100.

    In integers of 256 bits after the point: exp(2 pi i / n) from its Taylor series, then its powers.

    Example:
        >>> [values.tolist() for values in roots_of_unity(4)]
        [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]]
    """
    one = 1 << _BITS
    cosine, sine = _first(n)
    c, s, table = one, 0, []
    for _ in range(n):
        table.append((c, s))
        c, s = (c * cosine - s * sine) >> _BITS, (c * sine + s * cosine) >> _BITS
    cleaned = [[_rounded(value, one) for value in pair] for pair in table]
    values = np.array(cleaned, dtype=np.float64)
    values.setflags(write=False)
    return values[:, 0], values[:, 1]


def cosine_below(numerator: int, denominator: int) -> Fraction:
    """A number not above cos(2 pi numerator / denominator)."""
    return Fraction(float(roots_of_unity(denominator)[0][numerator])) - Fraction(ROOT_ERROR)


def _rounded(value: int, one: int) -> float:
    """To the nearest float64; what the fixed-point arithmetic cannot tell from 0 is 0."""
    return 0.0 if abs(value) < one >> 100 else float(Fraction(value, one))


def _first(n: int) -> tuple[int, int]:
    """cos(2 pi / n) and sin(2 pi / n) in fixed point; below 2 pi the terms of the series fall from the 7th on."""
    angle = 2 * _pi() // n
    parts, term, k = [0, 0], 1 << _BITS, 0
    while term:
        parts[k % 2] += term if k % 4 < 2 else -term
        k += 1
        term = (term * angle >> _BITS) // k
    return parts[0], parts[1]


def _pi() -> int:
    """Machin: pi = 16 arctan(1/5) - 4 arctan(1/239)."""
    return 16 * _arctan_of_inverse(5) - 4 * _arctan_of_inverse(239)


def _arctan_of_inverse(x: int) -> int:
    total, power, k = 0, (1 << _BITS) // x, 0
    while power:
        total += power // (2 * k + 1) * (-1 if k % 2 else 1)
        power //= x * x
        k += 1
    return total
