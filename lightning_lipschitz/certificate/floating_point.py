"""Proofs of positive definiteness in floating point.

Standard model of arithmetic: ``fl(a op b) = (a op b)(1 + d)``, |d| <= u = 2^-53. With ``gamma(k) = k u / (1 - k u)``
an inner product of k terms, in any order and with or without fused operations, carries an error of at most ``gamma(k)
|a|'|b|``.
Where a product, a quotient or a rescaling underflows, another 2^-1075 is lost, whatever its size: ``TINY``, 2^-1022,
pays for that and 2^52 more of its kind. So that this is small against what is proved, sizes are brought near one by
powers of two before anything is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular

from lightning_lipschitz.graph.arrays import Array

Blocks = dict[tuple[int, int], Array]

UNIT_ROUNDOFF = 2.0**-53
TINY = float(np.finfo(np.float64).tiny)


def gamma(k: int) -> float:
    """An upper bound of ``k u / (1 - k u)``."""
    return 1.0000001 * k * UNIT_ROUNDOFF / (1.0 - k * UNIT_ROUNDOFF)


def round_up(value: Fraction) -> float:
    """The least float64 that is not below ``value``, infinity beyond the largest."""
    try:
        nearest = float(value)
    except OverflowError:
        return math.inf
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def sqrt_up(value: Fraction) -> float:
    """A float64 whose exact square is not below ``value``, one unit in the last place from the least."""
    if value == 0:
        return 0.0
    exponent = (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    near_one = value / Fraction(4) ** exponent
    root = math.sqrt(round_up(near_one))
    while Fraction(root) ** 2 < near_one:
        root = math.nextafter(root, math.inf)
    return round_up(Fraction(root) * Fraction(2) ** exponent)


def product_up(*factors: float) -> float:
    """The least float64 that is not below the product of numbers >= 0; infinity where one is infinite or NaN.

    Example:
        >>> product_up(1e-200, 1e-200), product_up(1e200, 1e-200, 1e200)
        (5e-324, 1e+200)
    """
    if not all(math.isfinite(factor) for factor in factors):
        return math.inf
    return round_up(math.prod(map(Fraction, factors), start=Fraction(1)))


def sum_up(*summands: float) -> float:
    """The least float64 that is not below the sum; infinity where a summand is infinite or NaN."""
    if not all(math.isfinite(summand) for summand in summands):
        return math.inf
    return round_up(sum(map(Fraction, summands), start=Fraction(0)))


def frobenius(values: Array) -> float:
    """An upper bound of the Frobenius norm, tight to some units of rounding, whatever the size of the entries.

    Example:
        >>> frobenius(np.array([3e-200, 4e-200])) >= 5e-200, frobenius(np.array([3e300, 4e300])) < 5.001e300
        (True, True)
    """
    entries = np.ravel(values, order="K")
    largest = float(np.max(np.abs(entries), initial=0.0))
    if not (0.0 < largest < math.inf):
        return 0.0 if largest == 0.0 else math.inf
    exponent = math.frexp(largest)[1]
    near_one = np.ldexp(entries, -exponent)
    # Squares that underflow are lost: 2^-1074 each, against a sum of 1/4 or more and its n + 1 roundings.
    norm = math.sqrt(float(near_one @ near_one)) * (1.0 + (entries.size + 8) * UNIT_ROUNDOFF)
    return round_up(Fraction(norm) * Fraction(2) ** exponent)


def half_exponents(values: Array) -> npt.NDArray[np.int64]:
    """Numbers e for which ``4^e values`` is between 1/2 and 2; values are finite and > 0."""
    exponents: npt.NDArray[np.int64] = -np.rint(0.5 * np.log2(values)).astype(np.int64)
    return exponents


def factorisation_error(keys: Iterable[tuple[int, int]], sizes: Sequence[int], trace: float) -> float:
    """A bound of the spectral norm of the backward error of :class:`BlockCholesky`, for sum of absolute diagonal terms
    ``trace``.

    Rump, "Verification of positive definiteness", BIT 46, 2006 (after Demmel, 1989): where the floating-point
    factorisation of a symmetric A runs through, A + E is positive semidefinite for some E with ``||E||_2 <= g / (1 -
    g) trace(A)``, g = gamma(k + 1), k the largest number of nonzeros in a row of the factor, in any order of
    evaluation. Here k + 5, for a diagonal that comes in three summands and a product that is divided as a whole, and
    the whole is doubled, because BLAS kernels multiply by rounded reciprocals where the analysis divides. What
    underflows adds 4 n (2 (n + 2) + the largest diagonal entry) 2^-1074 (ibidem, Theorem 2.3).
    """
    g = gamma(_longest_row(set(keys), sizes) + 5)
    return 2.0 * g / (1.0 - g) * trace + _underflow(sum(sizes), trace)


def _underflow(n: int, trace: float) -> float:
    return 4.0 * n * (2.0 * (n + 2) + trace) * TINY


def _longest_row(keys: set[tuple[int, int]], sizes: Sequence[int]) -> int:
    """Nonzeros in the fullest row of the factor, fill included, whichever of blocks 0 and 1 comes last."""
    row = list(sizes)
    for pivot in range(len(sizes) - 1, 0, -1):
        touched = sorted(i for i, j in keys if j == pivot and i < pivot)
        keys |= {(i, j) for i in touched for j in touched if i <= j}
        for i in touched:
            row[i] += sizes[pivot]
    if (0, 1) in keys:
        row[1] += sizes[0]
    return max(row)


class BlockCholesky:
    """Cholesky factorisation of a symmetric matrix in blocks, all but one number known.

    Elimination runs from the highest block down: a chain creates no fill, and what belongs to the input, where alone
    rho enters, can be tried for many rho at the cost of one block. Where block 0 is zero until then and touches block 1
    alone, as in a chain whose first slopes contain zero, it goes before block 1: an image has more pixels than its
    first layer units.

    Args:
        blocks: ``blocks[i, j]``, i <= j, rows i and columns j; absent ones are zero, every ``[i, i]`` is there.
            Overwritten.
        shift: subtracted from the diagonal.
    """

    def __init__(self, blocks: Blocks, shift: float) -> None:
        self.blocks, self.shift = blocks, shift
        pivots = sorted({j for _, j in blocks} - {0}, reverse=True)
        self.definite = all(self._eliminate(pivot) for pivot in pivots if pivot > 1)
        self._gram = self._input_gram() if self.definite else None
        if self.definite and self._gram is None and 1 in pivots:
            self.definite = self._eliminate(1)

    def _eliminate(self, pivot: int) -> bool:
        factor = _factor(self.blocks.pop((pivot, pivot)), self.shift)
        if factor is None:
            return False
        rows = sorted(i for i, j in self.blocks if j == pivot)
        panels = {i: _solve(factor, self.blocks.pop((i, pivot))) for i in rows}
        for a, i in enumerate(rows):
            for j in rows[a:]:
                update = panels[i] @ panels[j].T
                self.blocks[i, j] = self.blocks[i, j] - update if (i, j) in self.blocks else -update
        return True

    def _input_gram(self) -> Array | None:
        """``B'B`` of B = block (0, 1), where block 0 is zero and touches nothing else."""
        if self.blocks.keys() != {(0, 0), (0, 1), (1, 1)} or np.any(self.blocks[0, 0]):
            return None
        gram: Array = self.blocks[0, 1].T @ self.blocks[0, 1]
        return gram

    def definite_with(self, added: Array) -> bool:
        """Whether the factorisation also runs through with ``added`` on the diagonal of block 0."""
        if not self.definite:
            return False
        if self._gram is None:
            block = self.blocks[0, 0].copy()
            block[np.diag_indices_from(block)] += added
            return _factor(block, self.shift) is not None
        least = float(np.min(added))  # one number in all the chains; less than what is there elsewhere
        pivot = least - self.shift
        return pivot > 0.5 * least > 1e-6 and _factor(self.blocks[1, 1] - self._gram / pivot, self.shift) is not None


def _factor(block: Array, shift: float) -> Array | None:
    """Lower Cholesky factor of ``block - shift I``, or None where a pivot is not positive."""
    block[np.diag_indices_from(block)] -= shift
    try:
        factor: Array = cholesky(block, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return None
    return factor if np.all(np.isfinite(factor)) else None


def _solve(factor: Array, block: Array) -> Array:
    """``block @ factor^-T``."""
    solved: Array = solve_triangular(factor, block.T, lower=True, check_finite=False).T
    return solved
