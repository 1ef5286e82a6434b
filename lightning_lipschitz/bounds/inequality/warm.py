"""Largest eigenvalues of matrices that change little from call to call, as smooth functions of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_VECTORS = 8  # of the subspace
_SQUARINGS = 3  # tr(H^16)^(1/16) of the Ritz values is at most 1.14 times the largest of eight


class WarmEigenvalues:
    r"""A smooth number near the largest eigenvalue, for a product with a few vectors.

    One step of subspace iteration a call, from where the last call ended, with the matrix H on the subspace:
    ``tr(H^16)^(1/16)``. Training that makes the largest eigenvalue smaller makes several equal; the derivative of the
    largest one then jumps from one of them to the next, and large steps of an optimizer diverge. This one pulls at all
    of them together. The gradient is that with the subspace held.

    In place of :func:`.sweep.largest_eigenvalue`, where a factorisation finds out what is too small.

    Attributes:
        bases: with orthonormal columns, by the number of the matrix.

    Example:
        >>> find = WarmEigenvalues()
        >>> round(find(0, torch.diag(torch.tensor([2.0, 1.0]))).item(), 3)  # (2^16 + 1)^(1/16)
        2.0
    """

    def __init__(self) -> None:
        self.bases: dict[int, Tensor] = {}

    def __call__(self, number: int, matrix: Tensor, scale: Tensor | None = None) -> Tensor:
        one = torch.ones_like(matrix[0]) if scale is None else scale
        with torch.no_grad():
            basis = self.bases.get(number)
            if basis is None or len(basis) != len(matrix):
                basis = torch.linalg.eigh(matrix * torch.outer(one, one))[1][:, -_VECTORS:]
            else:
                moved = matrix @ (one[:, None] * basis.to(matrix))
                basis = torch.linalg.qr(one[:, None] * moved)[0]
            self.bases[number] = basis
        scaled = one[:, None] * basis
        return _smooth_largest(scaled.mT @ (matrix @ scaled))

    def state_dict(self) -> dict[int, Tensor]:
        """The subspaces, on the CPU."""
        return {number: basis.to("cpu", copy=True) for number, basis in self.bases.items()}

    def load_state_dict(self, state: Mapping[int, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.bases = dict(state)


def _smooth_largest(H: Tensor) -> Tensor:
    size = H.detach().diagonal().sum()
    power = H / size
    for _ in range(_SQUARINGS):
        power = power @ power
    root = 2.0 ** -(_SQUARINGS + 1)
    return size * power.square().sum() ** root
