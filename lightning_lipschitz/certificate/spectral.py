"""Spectral norms bounded from above, proved: ``s^2 I - W'W >= 0`` by Cholesky, or, cheaply and loosely, by
``|W|_2 <= |W|_F`` and ``|W|_2^2 <= |W|_1 |W|_inf``."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction

import numpy as np
from scipy.linalg import LinAlgError, eigvalsh
from scipy.sparse.linalg import ArpackError, eigsh

from lightning_lipschitz.certificate.floating_point import (
    TINY,
    BlockCholesky,
    factorisation_error,
    frobenius,
    gamma,
    round_up,
    sqrt_up,
)
from lightning_lipschitz.graph.arrays import Array

LANCZOS = 500  # rows from which it is faster


def norm_upper_bound(matrix: Array, rounding: float = 0.0, margin: float = 1.0) -> float:
    """The least number near the largest singular value that :func:`norm_holds` accepts.

    Args:
        matrix: shape (m, n).
        rounding: Frobenius distance within which the real-arithmetic matrix lies.
        margin: factor on the allowance for rounding.

    Returns:
        A float64 not below the spectral norm of every matrix within ``rounding``; exact for (scaled) selections.
    """
    if not (np.all(np.isfinite(matrix)) and math.isfinite(rounding)):
        return math.inf
    exact = _selection_norm(matrix)
    if exact is not None:
        return exact if rounding == 0 else round_up(Fraction(exact) + Fraction(rounding))
    scale, scaled = _scaled(matrix)
    gram = _gram(scaled)
    squared = max(largest_eigenvalue(gram), float(np.max(np.diagonal(gram))))
    step = margin * _allowance(scaled, frobenius(scaled), squared) / squared
    while step < 1.0:
        bound = math.sqrt(squared * (1.0 + step))
        if _gram_below(scaled, gram, Fraction(bound), margin):
            return round_up(Fraction(bound) * scale + Fraction(rounding))
        step *= 2.0
    return math.inf


def largest_eigenvalue(matrix: Array) -> float:
    """The largest eigenvalue of a symmetric matrix, to rounding; nothing is proved by it.

    Of large matrices, by Lanczos: a few hundred products with vectors in place of a reduction to tridiagonal form.
    LAPACK's search for one alone fails on a few matrices that are nearly singular.
    """
    last = len(matrix) - 1
    if last >= LANCZOS:
        start = np.random.default_rng(0).standard_normal(len(matrix))
        with contextlib.suppress(ArpackError):
            return float(eigsh(matrix, k=1, which="LA", tol=1e-12, v0=start, return_eigenvectors=False)[0])
    try:
        return float(eigvalsh(matrix, subset_by_index=(last, last), check_finite=False)[0])
    except LinAlgError:
        return float(eigvalsh(matrix, driver="ev", check_finite=False)[-1])


def norm_holds(matrix: Array, bound: float, rounding: float = 0.0, margin: float = 1.0) -> bool:
    """Whether ``||W||_2 <= bound`` is proved for every W within ``rounding`` of ``matrix``."""
    if not (math.isfinite(bound) and bound >= 0 and math.isfinite(rounding) and np.all(np.isfinite(matrix))):
        return False
    room = Fraction(bound) - Fraction(rounding)
    exact = _selection_norm(matrix)
    if exact is not None:
        return Fraction(exact) <= room
    scale, scaled = _scaled(matrix)
    if _roughly(scaled) <= 1.01 * round_up(room / scale) and cheap_norm_upper_bound(matrix, rounding) <= bound:
        return True
    return _gram_below(scaled, _gram(scaled), room / scale, margin)


def cheap_norm_upper_bound(matrix: Array, rounding: float = 0.0) -> float:
    """The smaller of ``|W|_F`` and ``sqrt(|W|_1 |W|_inf)``, rounded up: proved by looking at every entry once.

    A sum of k numbers >= 0 is computed with a relative error of at most gamma(k), in any order.

    Args:
        matrix: shape (m, n).
        rounding: Frobenius distance within which the real-arithmetic matrix lies.

    Example:
        >>> cheap_norm_upper_bound(np.array([[1.0, 1.0], [1.0, -1.0]])) >= 2.0**0.5
        True
    """
    if not (np.all(np.isfinite(matrix)) and math.isfinite(rounding)):
        return math.inf
    exact = _selection_norm(matrix)
    if exact is not None:
        return round_up(Fraction(exact) + Fraction(rounding))
    scale, scaled = _scaled(matrix)
    lost = Fraction(matrix.size * TINY)  # by entries that underflow when they are scaled, or squared
    squares = above(float(np.sum(scaled**2)), matrix.size + 1) + lost
    longest = [above(float(np.max(np.sum(np.abs(scaled), axis=axis))), matrix.shape[axis]) for axis in (0, 1)]
    norm = Fraction(sqrt_up(min(squares, longest[0] * longest[1])))
    return round_up((norm + lost) * scale + Fraction(rounding))


def above(computed: float, terms: int) -> Fraction:
    """What the exact sum of ``terms`` numbers >= 0 is not above, given the computed one."""
    return Fraction(computed) / (1 - Fraction(gamma(terms)))


def _roughly(matrix: Array) -> float:
    """About what :func:`cheap_norm_upper_bound` returns."""
    sums = np.abs(matrix)
    return min(float(np.linalg.norm(matrix)), math.sqrt(float(sums.sum(axis=0).max() * sums.sum(axis=1).max())))


def _gram_below(matrix: Array, gram: Array, bound: Fraction, margin: float) -> bool:
    """``bound^2 I - W'W > 0``, on the smaller side of W."""
    length = frobenius(matrix)
    if bound <= 0 or bound >= Fraction(length):
        return bound > 0
    squared = _square_down(bound)
    shift = margin * _allowance(matrix, length, squared)
    return BlockCholesky({(0, 0): -gram}, shift).definite_with(np.full(len(gram), squared))


def _allowance(matrix: Array, length: float, squared: float) -> float:
    """What forming the Gram matrix of a matrix, of Frobenius norm ``length`` at most, and factoring ``squared I -
    gram`` can do to the spectrum."""
    mass, size = 1.01 * length**2, min(matrix.shape)
    factoring = factorisation_error({(0, 0)}, [size], mass + size * squared)
    return 1.01 * (gamma(max(matrix.shape) + 2) * mass + factoring)


def _square_down(bound: Fraction) -> float:
    """A float64 not above ``bound^2``."""
    squared = float(bound * bound)
    return squared if Fraction(squared) <= bound * bound else math.nextafter(squared, 0.0)


def _gram(matrix: Array) -> Array:
    gram: Array = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    return gram


def _scaled(matrix: Array) -> tuple[Fraction, Array]:
    """(s, matrix / s) with s a power of two that brings the largest entry near one: exact but for underflow to zero.

    Entries below 2^-1022 of the largest lose digits, 2^-1075 each, as the products of the Gram matrix do: n^2 of these
    are far below the allowance of the test that follows, which is 2^-53 of the largest square or more.
    """
    exponent = int(np.frexp(np.max(np.abs(matrix)))[1])
    return Fraction(2) ** exponent, np.ldexp(matrix, -exponent)


def _selection_norm(matrix: Array) -> float | None:
    """The exact norm where no row and no column has two nonzeros (zero, diagonal, permutation); None elsewhere."""
    if matrix.size and np.count_nonzero(matrix[0]) > 1:  # most are told by their first row
        return None
    nonzero = matrix != 0
    if matrix.size and (nonzero.sum(axis=0).max() > 1 or nonzero.sum(axis=1).max() > 1):
        return None
    return float(np.max(np.abs(matrix), initial=0.0))
