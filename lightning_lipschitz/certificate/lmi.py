r"""The matrix inequality behind every LipSDP bound.

Theorem (Fazlyab, Robey, Hassani, Morari, Pappas, "Efficient and accurate estimation of Lipschitz constants for deep
neural networks", NeurIPS 2019, Theorems 1 and 2 with diagonal multipliers; for any feed-forward graph). Let f be the
function of a :class:`~lightning_lipschitz.graph.network.Network` with input x, units z, rows ``y = A x + B z`` and
output ``f = C x + D z``, and put

.. math::

    M(\rho, \lambda) = \rho I_x - [C\ D]'[C\ D] + \sum_i \lambda_i (s_i t_i' + t_i s_i'), \qquad
    s_i = e_i - \alpha_i a_i,\quad t_i = e_i - \beta_i a_i,

with :math:`e_i` the unit vector of :math:`z_i` and :math:`a_i` the row of :math:`y_i` in :math:`v = (x, z)`. If lambda
>= 0, lambda is constant
on every group, and M(rho, lambda) >= 0, then :math:`|f(x) - f(x')|_2 \le \sqrt\rho\, |x - x'|_2` for all x, x'.

Proof. For two inputs let d denote differences. Then ``dv' M dv = rho |dx|^2 - |df|^2 + 2 sum_i lambda_i (dz_i -
alpha_i dy_i)(dz_i -
beta_i dy_i)``. On each group lambda is one number >= 0 and the sum of the products is <= 0 (equation (1) of
``network``), so ``0 <= dv' M dv <= rho |dx|^2 - |df|^2``. Biases cancel in the differences.

Multipliers that couple different units ((e_i - e_j)(e_i - e_j)') are NOT covered: the claim is false for them (Pauli
et al. 2021, Remark 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.certificate.floating_point import (
    TINY,
    Blocks,
    frobenius,
    gamma,
    half_exponents,
    product_up,
    sum_up,
)
from lightning_lipschitz.certificate.proofs import Multipliers
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Affine, Network, Term

Exponents = npt.NDArray[np.int64]

_NOTHING = -(2**20)  # the exponent of zero


@dataclass
class ScaledLMI:
    """``D (M(rho, lambda) - rho I_x) D`` in floating point, D diagonal of powers of two that bring the diagonal of M
    near one.

    Attributes:
        blocks: ``blocks[i, j]``, i <= j: rows of source i, columns of source j.
        rho_exponents: shape (n_0,); ``rho 2^rho_exponents`` on the diagonal of block (0, 0) completes the matrix.
        error: the exact matrix lies within this spectral norm of the blocks, infinity where something overflowed.
        mass: sum of the absolute values that were added up on the diagonal, without rho.
    """

    blocks: Blocks
    rho_exponents: Exponents
    error: float
    mass: float


@dataclass(frozen=True)
class _RowFactors:
    """One factor a row, ``mantissa 2^exponent``: products of tiny and of huge numbers, none of which is formed."""

    mantissa: Array
    exponent: Exponents

    @classmethod
    def product(cls, *factors: Array | float) -> _RowFactors:
        """The product of the factors, one rounding for each but the first, no underflow and no overflow."""
        mantissa, exponent = np.ones(()), np.zeros((), dtype=np.int64)
        for factor in factors:
            part, power = np.frexp(np.asarray(factor, dtype=np.float64))
            mantissa, exponent = mantissa * part, exponent + power
        exponent = np.where(
            mantissa == 0, _NOTHING, exponent
        )  # a row of weight zero must not count for its other factors
        return cls(*np.broadcast_arrays(mantissa, exponent))

    @property
    def largest(self) -> float:
        """The largest absolute value, rounded up."""
        size = np.where(self.mantissa == 0, 0.0, np.ldexp(np.abs(self.mantissa), self.exponent))
        return sum_up(float(np.max(size, initial=0.0)), TINY if np.any(self.mantissa) else 0.0)

    def times_power(self, exponents: Exponents) -> _RowFactors:
        return _RowFactors(self.mantissa, self.exponent + exponents)


def assemble(network: Network, proposal: Multipliers) -> ScaledLMI | None:
    """Form the scaled M, or None where a diagonal entry of M is not positive (M is then not definite)."""
    diagonal = _diagonal(network, proposal)
    if not all(np.all((d > 0) & np.isfinite(d)) for d in diagonal):
        return None
    form = _ScaledSum(network.sizes, [half_exponents(d) for d in diagonal])
    for k, (layer, lam) in enumerate(zip(network.layers, proposal.values, strict=True), start=1):
        form.add_diagonal(k, _RowFactors.product(2.0, lam))
        form.add_coupling(k, layer.affine, _RowFactors.product(lam, layer.alpha + layer.beta))
        if np.any((layer.alpha != 0) & (layer.beta != 0)):
            form.add_square(layer.affine, _RowFactors.product(2.0, lam, layer.alpha, layer.beta))
    form.add_square(network.output, _RowFactors.product(-np.ones(network.output.size)))
    return ScaledLMI(form.blocks, 2 * form.scale[0], form.error(), form.diagonal_mass)


def _diagonal(network: Network, proposal: Multipliers) -> list[Array]:
    """The diagonal of M, source by source, to working accuracy: it decides the scale, and nothing is proved with it."""
    diagonal = [np.full(network.input_size, proposal.rho), *(2.0 * lam for lam in proposal.values)]
    weights = [2.0 * lam * layer.alpha * layer.beta for layer, lam in zip(network.layers, proposal.values, strict=True)]
    for affine, weight in zip(network.affines, [*weights, -np.ones(network.output.size)], strict=True):
        if np.any(weight != 0):
            for term in affine.terms:
                diagonal[term.source] = diagonal[term.source] + weight @ term.matrix**2
    return diagonal


class _ScaledSum:
    """Adds up blocks and, beside them, what their rounding can amount to.

    Exponents are added before anything is multiplied, so that what underflows is below 2^-1074 in the scaled matrix,
    whose diagonal is near one, and not in M.
    """

    def __init__(self, sizes: Sequence[int], scale: list[Exponents]) -> None:
        self.scale = scale  # D = 2^scale
        self.blocks: Blocks = {(j, j): np.zeros((size, size)) for j, size in enumerate(sizes)}
        self.diagonal_mass = 0.0
        self.magnitude = 0.0  # sum of the Frobenius norms of all that was added, absolute values inside
        self.perturbation = 0.0  # what the terms' own rounding, and underflow, can change, in spectral norm
        self.operations = 0  # the longest chain of roundings that one entry can have seen

    def add_diagonal(self, k: int, weight: _RowFactors) -> None:
        block, values = self.blocks[k, k], np.ldexp(weight.mantissa, weight.exponent + 2 * self.scale[k])
        block[np.diag_indices_from(block)] += values
        self.diagonal_mass += float(np.sum(np.abs(values)))
        self._count(frobenius(values), 3, len(values), 1.0)

    def add_coupling(self, k: int, affine: Affine, weight: _RowFactors) -> None:
        """``- e' diag(weight) W_j`` and its transpose."""
        rows = weight.times_power(self.scale[k])
        for term in affine.terms:
            part, power = np.frexp(term.matrix)
            part = np.ldexp(rows.mantissa[:, None] * part, rows.exponent[:, None] + power + self.scale[term.source])
            self._add(term.source, k, -part.T)
            self._count(frobenius(part), 5, part.size, 1.0)
            self.perturbation += product_up(rows.largest, self._slack(term))

    def add_square(self, affine: Affine, weight: _RowFactors) -> None:
        """``W_i' diag(weight) W_j`` for every pair of terms, each of which takes half of the weight's exponent."""
        half = weight.exponent // 2
        inner = np.ldexp(weight.mantissa, weight.exponent - 2 * half)
        terms = sorted(affine.terms, key=lambda term: term.source)
        scaled = [np.ldexp(term.matrix, half[:, None] + self.scale[term.source]) for term in terms]
        norms = [frobenius(matrix) for matrix in scaled]
        roots = float(np.max(np.ldexp(1.0, half), initial=0.0))
        slack = [product_up(roots, self._slack(term)) for term in terms]
        largest = float(np.max(np.abs(inner), initial=0.0))
        for a, left in enumerate(terms):
            for b, right in enumerate(terms[a:], start=a):
                self._add(left.source, right.source, scaled[a].T @ (inner[:, None] * scaled[b]))
                lost = (affine.size + 2) * (1.0 + norms[a] + norms[b]) * (1.0 + largest)
                entries = (affine.size + 1) * (left.matrix.shape[1] + 1) * (right.matrix.shape[1] + 1)
                self._count(product_up(largest, norms[a], norms[b]), affine.size + 4, entries, lost)
                crossed = sum_up(
                    product_up(slack[a], norms[b]), product_up(norms[a], slack[b]), product_up(slack[a], slack[b])
                )
                self.perturbation += product_up(largest, crossed)
            self.diagonal_mass += product_up(largest, norms[a], norms[a])

    def error(self) -> float:
        """A bound of the spectral norm of (floating-point blocks - exact blocks)."""
        return 1.01 * (gamma(self.operations) * self.magnitude + self.perturbation)

    def _slack(self, term: Term) -> float:
        """The rounding of a term after its columns were scaled, rounded up."""
        if term.rounding == 0.0:
            return 0.0
        return float(np.ldexp(term.rounding, int(np.max(self.scale[term.source], initial=_NOTHING)))) + TINY

    def _add(self, i: int, j: int, part: Array) -> None:
        self.blocks[i, j] = self.blocks[i, j] + part if (i, j) in self.blocks else part

    def _count(self, magnitude: float, roundings: int, entries: int, lost: float) -> None:
        """``lost`` times 2^-1022 is more than each of the ``entries`` can lose to underflow."""
        self.magnitude += magnitude
        self.operations += roundings
        self.perturbation += float(entries) * lost * TINY
