r"""The matrix whose spectral norm decides: M(rho, lambda; W) >= 0 if and only if ||G(W)||_2 <= 1, for a chain with
fixed multipliers.

Take a chain ``y_k = W_k s_{k-1}`` whose slope intervals contain zero, alpha <= 0 <= beta. The matrix of
:mod:`lightning_lipschitz.certificate.lmi` is then ``D - (linear in W) - (quadratic in W)`` with D = diag(rho I, 2
Lambda_1, ..., 2 Lambda_K) and the quadratic parts ``W_k' diag(2 lambda |alpha beta|) W_k`` and ``W_out' W_out``
positive semidefinite. A Schur complement gives each of them a block row of its own, with unit diagonal. The matrix
that results is a block tree: layer k, and its quadratic part, are linked to source k - 1 only, so odd layers are
linked to even ones only. Scaled to a unit diagonal it reads [[I, -G], [-G', I]], positive semidefinite exactly if
the singular values of G are at most one. With rows i of layer k and columns j of source k - 1, the entries of G are

    sqrt(lambda_i / 2) (alpha_i + beta_i) W_ij / sqrt(D_j)    and, where alpha_i < 0 < beta_i,    sqrt(2 lambda_i
    |alpha_i beta_i|) W_ij / sqrt(D_j),

and ``W_ij / sqrt(D_j)`` for the output. G is linear in W. (Slopes [0, 1] are the case of Pauli et al., "Training
robust neural networks using Lipschitz bounds", L-CSS 2021, whose constraint is M >= 0 itself.) An interval with
alpha * beta > 0 adds ``+ 2 lambda alpha beta W'W`` and the set is no longer convex.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


class GainMatrix:
    """G as a linear map of the vector of all weights, and its adjoint.

    Args:
        sizes: widths of the input, of every layer and of the output.
        rho: the squared bound.
        multipliers: lambda > 0, shape (n_k,) a layer.
        slopes: (alpha, beta) a layer, shape (n_k,) each, alpha <= 0 <= beta.
        device: of everything.

    Attributes:
        size: of G.
        copies: for every entry of every weight, its factor and its position in G, once or (quadratic parts) twice.
        curvature: shape (number of weights,); G*G is diagonal, since every entry of G belongs to one weight.
        root: D^(-1/2) of the rows and of the columns of G; ``root_i Y_ij root_j`` is a dual that does not depend on the
            scaling to a unit diagonal.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rho: float,
        multipliers: Sequence[Tensor],
        slopes: Sequence[tuple[Tensor, Tensor]],
        device: torch.device,
    ) -> None:
        like = torch.zeros(0, dtype=torch.float64, device=device)
        columns = [like.new_full((sizes[0],), rho**-0.5), *((2.0 * lam).rsqrt() for lam in multipliers)]
        rows = [(lam / 2).sqrt() * (a + b) for lam, (a, b) in zip(multipliers, slopes, strict=True)]
        rows.append(like.new_ones(sizes[-1]))
        squares = [(-2.0 * lam * a * b).clamp(min=0).sqrt() for lam, (a, b) in zip(multipliers, slopes, strict=True)]
        squares.append(like.new_zeros(sizes[-1]))
        self.shapes = [(after, before) for before, after in pairwise(sizes)]
        bypass = [bool(square.any()) for square in squares]
        first, self.size = _offsets(sizes, bypass)
        self.copies = [_copy(rows, columns, first, self.size, [0] * len(rows))]
        if any(bypass):
            below = [n if extra else 0 for n, extra in zip(sizes[1:], bypass, strict=True)]
            self.copies.append(_copy(squares, columns, first, self.size, below))
        self.root = _roots(columns, [*bypass, False], sizes)
        self.curvature = sum((gain**2 for gain, _ in self.copies), start=torch.zeros_like(self.copies[0][0]))

    def flatten(self, weights: Sequence[Tensor]) -> Tensor:
        """All weights as one vector."""
        return torch.cat([weight.reshape(-1) for weight in weights])

    def split(self, vector: Tensor) -> list[Tensor]:
        """The inverse of :meth:`flatten`."""
        parts = torch.split(vector, [rows * columns for rows, columns in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def matrix(self, vector: Tensor) -> Tensor:
        """G, of shape (all odd layers, all even ones)."""
        out = vector.new_zeros(self.size[0] * self.size[1])
        for gain, index in reversed(
            self.copies
        ):  # a layer without quadratic part writes zeros there, then its own entries
            out.scatter_(0, index, gain * vector)
        return out.view(self.size)

    def adjoint(self, matrix: Tensor) -> Tensor:
        """The vector w' with <w', w> = <matrix, G(w)> for all w."""
        flat = matrix.reshape(-1)
        (gain, index), *others = self.copies
        total = gain * flat.index_select(0, index)
        for gain, index in others:
            total.addcmul_(gain, flat.index_select(0, index))
        return total


def _offsets(sizes: Sequence[int], bypass: Sequence[bool]) -> tuple[list[int], tuple[int, int]]:
    """Where every source begins among those of its parity, and (odd, even) totals; a quadratic part follows its
    layer."""
    first, total = [], [0, 0]
    for k, size in enumerate(sizes):
        first.append(total[k % 2])
        total[k % 2] += size * (2 if k and bypass[k - 1] else 1)
    return first, (total[1], total[0])


def _roots(columns: Sequence[Tensor], bypass: Sequence[bool], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """D^(-1/2), odd then even; one for quadratic parts and for the output."""
    parts: tuple[list[Tensor], list[Tensor]] = ([columns[0][:0]], [columns[0][:0]])
    for k, column in enumerate([*columns, columns[0].new_ones(sizes[-1])]):
        parts[(k + 1) % 2].append(column)
        if k and bypass[k - 1]:
            parts[(k + 1) % 2].append(torch.ones_like(column))
    return torch.cat(parts[0]), torch.cat(parts[1])


def _copy(
    rows: Sequence[Tensor], columns: Sequence[Tensor], first: Sequence[int], size: tuple[int, int], below: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Factor of, and position in G of, every entry of every weight matrix."""
    gains, positions = [], []
    for k, (row, column) in enumerate(zip(rows, columns, strict=True), start=1):
        gains.append((row[:, None] * column).reshape(-1))
        i = torch.arange(len(row), device=row.device)[:, None] + first[k] + below[k - 1]
        j = torch.arange(len(column), device=row.device) + first[k - 1]
        positions.append((i * size[1] + j if k % 2 else j * size[1] + i).reshape(-1))
    return torch.cat(gains), torch.cat(positions)
