r"""The log-determinant of the matrix inequality of any feed-forward graph, with its derivatives.

With rows A of the pre-activations and C of the output over the sources (x, z), the matrix of
:mod:`lightning_lipschitz.certificate.lmi`, scaled by ``D = diag(1 / sqrt(rho), 1 / sqrt(2 lambda))`` on both sides, is

.. math::

    \hat M = I - \hat C'\hat C - \tfrac12 [\hat A'\,\mathrm{diag}(\alpha + \beta) E + E'\,\mathrm{diag}(\alpha + \beta)
    \hat A] + \hat A'\,\mathrm{diag}(\alpha\beta) \hat A, \qquad \hat A = \sqrt{2\lambda}\, A D,\quad \hat C = C D,

E the unit vectors of z. ``b = log det M_hat`` is zero at zero weights and negative elsewhere where every interval
contains zero with alpha + beta balanced; it differs from ``log det M`` by logarithms of rho and lambda, without which a
unit whose weights are near zero would gain without limit as they vanish and its lambda grows.

M_hat is factorised block by block, sources in their order. On a chain this is the recursion ``S_k = I - W_k S_{k-1}^-1
W_k'`` (scaled); in a graph blocks fill in between the layers that read a source. The block of x is the identity where
no quadratic term touches it, however wide; where one does, x is replaced by Q'x, Q a basis of the directions that are
read. With X the inverse of M_hat, of which only the blocks that the factor has are computed, the derivatives of b are

    dC_hat: -2 C_hat X,      dA_hat: -diag(alpha + beta) E X + 2 diag(alpha beta) A_hat X,

and those in log lambda and log rho follow from the scaling alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_lipschitz.bounds.inequality.structure import Blocks, Structure

Matrix = dict[tuple[int, int], Tensor]  # the blocks (i, j), i >= j, of a symmetric matrix


class Inequality:
    """M_hat for fixed multipliers and a fixed bound, as a function of the weights.

    Args:
        structure: of the network.
        multipliers: lambda > 0, float64, one a group.
        rho: the squared bound.

    Example:
        >>> from lightning_lipschitz.graph.network import Network
        >>> structure = Structure.of(Network.from_weights([[[1.0]], [[1.0]]]))
        >>> blocks = {(1, 0): torch.ones(1, 1), (2, 1): torch.ones(1, 1)}
        >>> point = Inequality(structure, torch.ones(1, dtype=torch.float64), 4.0).at(blocks)
        >>> round(math.exp(-point.barrier) * 4 * 2, 6)  # det [[4, -1], [-1, 1]], scaled by 4 and by 2 lambda
        3.0
    """

    def __init__(self, structure: Structure, multipliers: Tensor, rho: float) -> None:
        self.structure, self.multipliers, self.rho = structure, multipliers, rho
        self._left = [(2.0 * lam).sqrt() for lam in structure.unshared(multipliers)]
        self._scales: Matrix = {}
        self._couplings: Matrix = {}

    @torch.no_grad()
    def at(self, blocks: Blocks) -> Point | None:
        """M_hat factorised, or None where it is not positive definite.

        Args:
            blocks: the weights, of any floating dtype; the work is done in float64.
        """
        basis = None
        if not self.structure.has_plain_input:
            blocks, basis = _compressed({key: block.double() for key, block in blocks.items()}, "reduced")
        M, squared = self._matrix(blocks)
        factors = _factorised(M, self.structure.last)
        return None if factors is None else Point(self, blocks, squared, basis, factors)

    def scale(self, key: tuple[int, int]) -> Tensor:
        """What a block of the weights is multiplied by in A_hat or C_hat, entry by entry."""
        if key not in self._scales:
            k, j = key
            right = 1.0 / self._left[j - 1] if j else self.multipliers.new_full((1,), self.rho**-0.5)
            self._scales[key] = self._left[k - 1][:, None] * right if k < self.structure.last else right
        return self._scales[key]

    def coupling(self, key: tuple[int, int]) -> Tensor:
        """What a block of the weights is multiplied by where it couples a layer and a source."""
        if key not in self._couplings:
            self._couplings[key] = (-0.5 * self.structure.total[key[0] - 1])[:, None] * self.scale(key)
        return self._couplings[key]

    def _matrix(self, blocks: Blocks) -> tuple[Matrix, Matrix]:
        """M_hat, and the blocks of A_hat and C_hat whose squares are in it."""
        structure, M = self.structure, {}
        for k, total in enumerate(structure.total, 1):
            M[k, k] = torch.eye(len(total), dtype=torch.float64, device=total.device)
            for j in structure.reads[k - 1]:
                M[k, j] = blocks[k, j].to(torch.float64, copy=True).mul_(self.coupling((k, j)))
        squared = {
            key: block.double() * self.scale(key) for key, block in blocks.items() if key[0] in structure.squared
        }
        for k, j in squared:
            weighted = squared[k, j] if k == structure.last else structure.product[k - 1][:, None] * squared[k, j]
            for i in structure.reads[k - 1]:
                if i >= j:
                    _add(M, (i, j), squared[k, i].mT, weighted, -1.0 if k == structure.last else 1.0)
        if (0, 0) in M:
            M[0, 0].diagonal().add_(1.0)
        return M, squared

    @torch.no_grad()
    def centred(self, blocks: Blocks) -> Tensor | None:
        """The multipliers after one damped Newton step up b; None where the weights are not inside.

        ``M = M_0 + sum_i lambda_i (s_i t_i' + t_i s_i')`` is affine in lambda, with ``s_i = e_i - alpha_i a_i``, ``t_i
        = e_i - beta_i a_i`` and a_i the row of y_i. With X the inverse of M its log-determinant has the derivative ``2
        s_i' X t_i``, and minus its Hessian, ``2 (s_i' X s_j)(t_i' X t_j) + 2 (s_i' X t_j)(t_i' X s_j)``, bounds that
        of b: a step damped by ``1 / (1 + decrement)`` stays inside (Nesterov, "Lectures on convex optimization", 2018,
        section 5.2). Here in relative steps, for M_hat.
        """
        structure, scaled = self.structure, {key: block.double() * self.scale(key) for key, block in blocks.items()}
        if not structure.has_plain_input:
            scaled, _ = _compressed(scaled, "r")
        alpha, beta = (torch.cat(side)[:, None] for side in (structure.alpha, structure.beta))
        half = 0.5 * (alpha + beta)
        A, C, G = structure.dense(scaled)
        units = slice(A.shape[1] - len(A), None)
        M = A.mT @ (alpha * beta * A) - C.mT @ C
        M[units] -= half * A
        M[:, units] -= (half * A).mT
        M[units, units] -= half * G * half.mT
        M.diagonal().add_(1.0)
        factor = _cholesky(M)
        if factor is None:
            return None
        X = torch.cholesky_inverse(factor)
        A[:, units] += G * half.mT  # the rows of y with x as z makes it
        XA, XZ = X[units] @ A.mT, X[units, units]
        AXA = A @ X @ A.mT + G
        SXS, TXT, SXT = (
            XZ - left * XA.mT - XA * right.mT + left * AXA * right.mT
            for left, right in ((alpha, alpha), (beta, beta), (alpha, beta))
        )
        gradient = structure.gathered(SXT.diagonal() - 1.0)
        hessian = structure.gathered(structure.gathered(0.5 * (SXS * TXT + SXT * SXT.mT)).mT)
        direction, info = torch.linalg.solve_ex(hessian, gradient)
        moved = direction / (1.0 + (gradient @ direction).clamp(min=0).sqrt())
        usable = not int(info) and bool(moved.isfinite().all()) and bool((moved > -1).all())
        return self.multipliers * (1.0 + moved) if usable else None


@dataclass(frozen=True, eq=False)
class Factors:
    """Cholesky's factor: ``own[j]`` on the diagonal, None for the identity, and ``below[j]``, by row, under it."""

    own: list[Tensor | None]
    below: list[dict[int, Tensor]]


@dataclass(frozen=True, eq=False)
class Point:
    """M_hat at one place, factorised.

    Attributes:
        inequality: whose M_hat.
        blocks: the weights, with compressed x.
        squared: blocks of A_hat and C_hat whose squares are in M_hat.
        basis: what x was compressed with, shape (inputs, directions that are read), or None.
        factors: of M_hat.
    """

    inequality: Inequality
    blocks: Blocks
    squared: Matrix
    basis: Tensor | None
    factors: Factors

    @cached_property
    def barrier(self) -> float:
        """The barrier -b: it grows without limit towards the boundary."""
        return -2.0 * sum(float(factor.diagonal().log().sum()) for factor in self.factors.own if factor is not None)

    def gradient(self) -> Matrix:
        """Gradient of the barrier with respect to the weights."""
        if self.basis is None:
            return self._slopes
        return {key: slope @ self.basis.mT if key[1] == 0 else slope for key, slope in self._slopes.items()}

    def slopes_of_logarithms(self) -> tuple[Tensor, float]:
        """Derivatives of the barrier in the logarithms of the multipliers, one a group, and in that of rho."""
        structure = self.inequality.structure
        units = [torch.zeros_like(alpha) for alpha in structure.alpha]
        rho = 0.0
        for (k, j), slope in self._slopes.items():
            share = 0.5 * slope * self.blocks[k, j]
            if k < structure.last:
                units[k - 1] += share.sum(1)
            if j:
                units[j - 1] -= share.sum(0)
            else:
                rho -= float(share.sum())
        return structure.gathered(torch.cat([*units, self.inequality.multipliers[:0]])), rho

    @cached_property
    def _slopes(self) -> Matrix:
        """The gradient, with compressed x."""
        inequality, structure, X = self.inequality, self.inequality.structure, _inverse(self.factors)
        found: Matrix = {}
        for k, j in self.blocks:
            if k < structure.last:
                found[k, j] = X[k, j] * (-2.0 * inequality.coupling((k, j)))
            if k in structure.squared:
                for i in structure.reads[k - 1]:
                    left = (
                        -self.squared[k, i]
                        if k == structure.last
                        else self.squared[k, i] * structure.product[k - 1][:, None]
                    )
                    square = (left @ _block(X, i, j)).mul_(-2.0 * inequality.scale((k, j)))
                    found[k, j] = found[k, j].add_(square) if (k, j) in found else square
        return found


def _factorised(M: Matrix, count: int) -> Factors | None:
    """The factor, by eliminating the sources in their order; M is used up."""
    factors = Factors([], [])
    for j in range(count):
        below = {i: M[i, j] for i in range(j + 1, count) if (i, j) in M}
        factor = _cholesky(M[j, j]) if (j, j) in M else None
        if factor is not None:
            below = {i: torch.linalg.solve_triangular(factor.mT, b, upper=True, left=False) for i, b in below.items()}
        elif (j, j) in M:
            return None
        for i, left in below.items():
            for k, right in below.items():
                if k <= i:
                    _add(M, (i, k), left, right.mT, -1.0)
        factors.own.append(factor)
        factors.below.append(below)
    return factors


def _inverse(factors: Factors) -> Matrix:
    """The inverse's blocks where the factor has some, from the last source to the first (Takahashi et al. 1973)."""
    X: Matrix = {}
    for j in range(len(factors.own) - 1, -1, -1):
        factor, below = factors.own[j], factors.below[j]
        if factor is not None:
            below = {i: torch.linalg.solve_triangular(factor, b, upper=False, left=False) for i, b in below.items()}
            X[j, j] = torch.cholesky_inverse(factor)
        for i in below:
            for k, block in below.items():
                _add(X, (i, j), _block(X, i, k), block, -1.0)
        for i, block in below.items() if factor is not None else ():
            X[j, j].addmm_(block.mT, X[i, j], alpha=-1.0)
    return X


def _block(symmetric: Matrix, i: int, j: int) -> Tensor:
    return symmetric[i, j] if i >= j else symmetric[j, i].mT


def _add(M: Matrix, key: tuple[int, int], left: Tensor, right: Tensor, sign: float = 1.0) -> None:
    """Add ``sign * left @ right`` to a block."""
    if key in M:
        M[key].addmm_(left, right, alpha=sign)
    else:
        M[key] = (sign * left) @ right


def _cholesky(S: Tensor) -> Tensor | None:
    """The lower factor, or None."""
    factor, info = torch.linalg.cholesky_ex(S)
    # a factor with NaN anywhere has it in its last entry
    return factor if not int(info) and math.isfinite(float(factor[-1, -1])) else None


def _compressed(
    scaled: dict[tuple[int, int], Tensor], mode: str
) -> tuple[dict[tuple[int, int], Tensor], Tensor | None]:
    """Q'x in place of x, where fewer directions of it are read than it has: M_hat is I on all others. And Q, unless
    ``mode`` is "r"."""
    wide = {key: block for key, block in scaled.items() if key[1] == 0}
    heights = [len(block) for block in wide.values()]
    if not 0 < sum(heights) < max((block.shape[1] for block in wide.values()), default=0):
        return scaled, None
    basis, upper = torch.linalg.qr(torch.cat(list(wide.values())).mT, mode=mode)
    return scaled | dict(zip(wide, upper.mT.split(heights), strict=True)), basis
