r"""The matrix inequality behind every LipSDP bound.

Theorem (Fazlyab, Robey, Hassani, Morari, Pappas, "Efficient and accurate estimation of Lipschitz constants for deep
neural networks",
NeurIPS 2019, Theorems 1 and 2 with diagonal multipliers; for any feed-forward graph). Let f be the function of a
:class:`~lightning_lipschitz.network.Network` with input x, units z, rows ``y = A x + B z`` and output ``f = C x + D
z``, and put

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

from lightning_lipschitz.certificate.floating_point import Array, Blocks, gamma, power_of_two
from lightning_lipschitz.certificate.proofs import Multipliers
from lightning_lipschitz.network import Affine, Network


@dataclass
class ScaledLMI:
    """``D (M(rho, lambda) - rho I_x) D`` in floating point, D diagonal of powers of two that bring the diagonal of M
    near one.

    Attributes:
        blocks: ``blocks[i, j]``, i <= j: rows of source i, columns of source j.
        rho_weight: shape (n_0,); ``rho * rho_weight`` on the diagonal of block (0, 0) completes the matrix, exactly.
        error: the exact matrix lies within this spectral norm of the blocks.
        mass: sum of the absolute values that were added up on the diagonal, without rho.
    """

    blocks: Blocks
    rho_weight: Array
    error: float
    mass: float


def assemble(network: Network, proposal: Multipliers) -> ScaledLMI | None:
    """Form the scaled M, or None where a diagonal entry of M is not positive (M is then not definite)."""
    diagonal = _diagonal(network, proposal)
    if not all(np.all((d > 0) & np.isfinite(d)) for d in diagonal):
        return None
    scale = [power_of_two(d) for d in diagonal]
    form = _Form(network.sizes, scale)
    for k, (layer, lam) in enumerate(zip(network.layers, proposal.values, strict=True), start=1):
        form.add_diagonal(k, 2.0 * lam * scale[k] ** 2)
        form.add_coupling(k, layer.affine, lam * (layer.alpha + layer.beta) * scale[k])
        if np.any(layer.alpha * layer.beta != 0):
            form.add_square(layer.affine, 2.0 * lam * layer.alpha * layer.beta)
    form.add_square(network.output, -np.ones(network.output.size))
    return ScaledLMI(form.blocks, scale[0] ** 2, form.error(), form.diagonal_mass)


def _diagonal(network: Network, proposal: Multipliers) -> list[Array]:
    """The diagonal of M, source by source, to working accuracy."""
    diagonal = [np.full(network.input_size, proposal.rho), *(2.0 * lam for lam in proposal.values)]
    weights = [2.0 * lam * layer.alpha * layer.beta for layer, lam in zip(network.layers, proposal.values, strict=True)]
    for affine, weight in zip(network.affines, [*weights, -np.ones(network.output.size)], strict=True):
        if np.any(weight != 0):
            for term in affine.terms:
                diagonal[term.source] = diagonal[term.source] + weight @ term.matrix**2
    return diagonal


class _Form:
    """Adds up blocks and, beside them, what their rounding can amount to."""

    def __init__(self, sizes: Sequence[int], scale: list[Array]) -> None:
        self.scale = scale
        self.blocks: Blocks = {(j, j): np.zeros((size, size)) for j, size in enumerate(sizes)}
        self.diagonal_mass = 0.0
        self.magnitude = 0.0  # sum of the Frobenius norms of all that was added, absolute values inside
        self.perturbation = 0.0  # what the terms' own rounding can change, in spectral norm
        self.operations = 0  # the longest chain of roundings that one entry can have seen

    def add_diagonal(self, k: int, values: Array) -> None:
        block = self.blocks[k, k]
        block[np.diag_indices_from(block)] += values
        self.diagonal_mass += float(np.sum(np.abs(values)))
        self._count(float(np.linalg.norm(values)), 3)

    def add_coupling(self, k: int, affine: Affine, weight: Array) -> None:
        """``- e' diag(weight) W_j`` and its transpose; ``weight`` carries the scale of the rows already."""
        for term in affine.terms:
            part = (weight[:, None] * term.matrix * self.scale[term.source]).T
            self._add(term.source, k, -part)
            self._count(float(np.linalg.norm(part)), 5)
            self.perturbation += _largest(weight) * term.rounding * _largest(self.scale[term.source])

    def add_square(self, affine: Affine, weight: Array) -> None:
        """``W_i' diag(weight) W_j`` for every pair of terms."""
        terms = sorted(affine.terms, key=lambda term: term.source)
        scaled = [term.matrix * self.scale[term.source] for term in terms]
        norms = [float(np.linalg.norm(matrix)) for matrix in scaled]
        slack = [term.rounding * _largest(self.scale[term.source]) for term in terms]
        largest = _largest(weight)
        for a, left in enumerate(terms):
            for b, right in enumerate(terms[a:], start=a):
                self._add(left.source, right.source, scaled[a].T @ (weight[:, None] * scaled[b]))
                self._count(largest * norms[a] * norms[b], affine.size + 4)
                self.perturbation += largest * (slack[a] * norms[b] + norms[a] * slack[b] + slack[a] * slack[b])
            self.diagonal_mass += largest * norms[a] ** 2

    def error(self) -> float:
        """A bound of the spectral norm of (floating-point blocks - exact blocks)."""
        return 1.01 * (gamma(self.operations) * self.magnitude + self.perturbation)

    def _add(self, i: int, j: int, part: Array) -> None:
        self.blocks[i, j] = self.blocks[i, j] + part if (i, j) in self.blocks else part

    def _count(self, magnitude: float, roundings: int) -> None:
        self.magnitude += magnitude
        self.operations += roundings


def _largest(values: Array) -> float:
    return float(np.max(np.abs(values), initial=0.0))
