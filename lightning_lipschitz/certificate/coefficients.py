"""Matrices that know how far rounding may have moved them.

Reading a weight is exact; composing two affine maps in float64 is not. Every operation below returns the stored matrix
together with a bound on ``| stored - real |_F``, where *real* is what exact arithmetic would give. The bounds are the
standard ones (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., sections 2.2 and 3.5), with the unit
roundoff ``u = 2^-53`` and ``gamma_k = k u / (1 - k u)``; they hold for any order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF, gamma, product_up, sum_up
from lightning_lipschitz.certificate.floating_point import frobenius as norm_up
from lightning_lipschitz.graph.arrays import Array, Indices

Matrix = Any  # an Array or a scipy.sparse.csr_array of float64; scipy ships no types for the latter
_is_sparse: Callable[[Any], bool] = sparse.issparse  # scipy-stubs would narrow to a class without attributes

_SMALLEST = 2.0**-1074  # what a product may lose to underflow (twice that, to be safe)
_ROUND_UP = 1.0 + 2.0**-48  # covers the few operations that evaluate a bound


def frobenius(matrix: Matrix) -> float:
    """An upper bound on the Frobenius norm, tight to a few units of rounding."""
    return norm_up(matrix.data if _is_sparse(matrix) else matrix)


def identity(size: int) -> Matrix:
    """The identity, stored sparsely."""
    return sparse.csr_array((np.ones(size), np.arange(size), np.arange(size + 1)), shape=(size, size))


def dense(matrix: Matrix) -> Array:
    """A matrix, sparse or not, as a numpy array."""
    return matrix.toarray() if _is_sparse(matrix) else matrix  # type: ignore[no-any-return]


def _selected_columns(matrix: Matrix) -> Indices | None:
    """The column that each row copies, -1 for an empty row; None if some row is more than a copy."""
    if not _is_sparse(matrix) or not np.all(matrix.data == 1.0):
        return None
    counts = np.diff(matrix.indptr)
    if counts.max(initial=0) > 1:
        return None
    columns = np.full(matrix.shape[0], -1)
    columns[counts == 1] = matrix.indices
    return columns


@dataclass(frozen=True, eq=False)
class Coefficients:
    """A matrix and its ``rounding``: the real-arithmetic matrix is within this Frobenius distance."""

    matrix: Matrix
    rounding: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape  # type: ignore[no-any-return]

    @property
    def empty(self) -> bool:
        """Whether nothing is stored, so that the product with any vector is zero."""
        return _is_sparse(self.matrix) and self.matrix.nnz == 0 and self.rounding == 0.0

    def rows(self, indices: Indices) -> Coefficients:
        """The rows of these numbers, repeated ones included; -1 stands for a row of zeros."""
        if not self.matrix.shape[0]:
            return zeros(len(indices), self.shape[1])
        repeats = int(np.bincount(indices[indices >= 0], minlength=1).max()) if self.rounding else 1
        matrix = self.matrix[indices]
        if np.any(indices < 0):
            matrix = _scale_rows(matrix, (indices >= 0).astype(np.float64))
            if _is_sparse(matrix):
                matrix.eliminate_zeros()
        return Coefficients(matrix, product_up(self.rounding, math.sqrt(repeats), _ROUND_UP))

    def scaled(self, factors: Array, relative: float = 0.0) -> Coefficients:
        """Row ``i`` times ``factors[i]``, whose own relative error is at most ``relative``."""
        matrix = _scale_rows(self.matrix, factors)
        if np.all(np.isin(np.abs(factors), (0.0, 1.0))) and relative == 0.0:
            return Coefficients(matrix, self.rounding)
        lost = math.prod(matrix.shape) * _SMALLEST  # to underflow
        made = product_up(UNIT_ROUNDOFF + relative, _ROUND_UP, frobenius(matrix)) + lost
        carried = product_up(self.rounding, float(np.abs(factors).max(initial=0.0)), 1.0 + 2.0 * relative)
        return Coefficients(matrix, (made + carried) * _ROUND_UP)

    def plus(self, other: Coefficients) -> Coefficients:
        """The sum; one rounding per entry."""
        if _is_sparse(self.matrix) != _is_sparse(other.matrix):
            matrix = dense(self.matrix) + dense(other.matrix)
        else:
            matrix = self.matrix + other.matrix
        return Coefficients(
            matrix, (product_up(UNIT_ROUNDOFF, frobenius(matrix)) + self.rounding + other.rounding) * _ROUND_UP
        )

    def premultiplied(self, weight: Matrix, rounding: float = 0.0) -> Coefficients:
        """``weight @ self``, the weight itself within a Frobenius distance of ``rounding``.

        ``gamma_k |weight|_F |self|_F`` of rounding, k the most entries of a row of the weight; none when no two entries
        are added.
        """
        columns = _selected_columns(self.matrix) if self.rounding == 0.0 else None
        moved = None if columns is None else _move_columns(weight, columns, self.shape[1])
        if moved is not None:
            return Coefficients(moved, rounding)
        product, norm, own = weight @ self.matrix, frobenius(weight), frobenius(self.matrix)
        carried = product_up(norm, self.rounding), product_up(rounding, own), product_up(rounding, self.rounding)
        longest = int(np.max(np.diff(weight.indptr), initial=0)) if _is_sparse(weight) else weight.shape[1]
        lost = product_up(2 * longest * _SMALLEST, math.sqrt(math.prod(product.shape)), _ROUND_UP)
        return Coefficients(product, sum_up(product_up(gamma(longest + 2), norm, own), lost, *carried))


def stacked(blocks: Sequence[Coefficients]) -> Coefficients:
    """The blocks one below the other: a copy, nothing is computed."""
    matrices = [block.matrix for block in blocks]
    if all(_is_sparse(matrix) for matrix in matrices):
        matrix: Matrix = sparse.csr_array(sparse.vstack(matrices, format="csr"))
    else:
        matrix = np.concatenate([dense(each) for each in matrices])
    return Coefficients(matrix, math.hypot(*(block.rounding for block in blocks)) * _ROUND_UP)


def zeros(rows: int, columns: int) -> Coefficients:
    """Nothing, stored sparsely."""
    return Coefficients(sparse.csr_array((rows, columns), dtype=np.float64))


def _scale_rows(matrix: Matrix, factors: Array) -> Matrix:
    if not _is_sparse(matrix):
        return matrix * factors[:, None]
    data = matrix.data * np.repeat(factors, np.diff(matrix.indptr))
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _move_columns(weight: Matrix, columns: Indices, width: int) -> Matrix | None:
    """``weight @ S`` for an ``S`` whose row ``i`` copies ``columns[i]``; None if this would add two entries."""
    if width == len(columns) and np.array_equal(columns, np.arange(width)):
        return weight
    if _is_sparse(weight):
        return _move_sparse_columns(weight, columns, width)
    used = columns >= 0
    if len(np.unique(columns[used])) < used.sum():
        return None
    spread = np.zeros((weight.shape[0], width))
    spread[:, columns[used]] = weight[:, used]
    return spread


def _move_sparse_columns(weight: Matrix, columns: Indices, width: int) -> Matrix | None:
    rows = np.repeat(np.arange(weight.shape[0]), np.diff(weight.indptr))
    targets = columns[weight.indices]
    used = targets >= 0
    moved = sparse.csr_array((weight.data[used], (rows[used], targets[used])), shape=(weight.shape[0], width))
    return moved if moved.nnz == used.sum() else None
