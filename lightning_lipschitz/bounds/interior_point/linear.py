"""Positive definite systems that are nearly singular."""

from __future__ import annotations

import torch
from torch import Tensor

_SHIFTS = (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-6, 1e-4)
_REFINEMENTS = 2


def cholesky(matrix: Tensor) -> Tensor | None:
    """The lower factor, or None where the matrix is not positive definite to working accuracy."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor if info.item() == 0 else None


class Equilibrated:
    """Solves H s = r, H positive semidefinite, through a Cholesky factor of the equilibrated matrix.

    H is scaled to a unit diagonal; the diagonal is shifted only by as much as its Cholesky needs, and what the shift
    costs is taken back by iterative refinement.
    """

    def __init__(self, H: Tensor) -> None:
        scale = H.diagonal().clamp(min=torch.finfo(H.dtype).tiny).rsqrt()
        self._scale = scale
        self._matrix = H.mul_(scale).mul_(scale[:, None])
        self._factor = self._shifted()

    def _shifted(self) -> Tensor:
        for shift in _SHIFTS:
            matrix = self._matrix
            if shift:
                matrix = matrix.clone()
                matrix.diagonal().add_(shift)
            factor = cholesky(matrix)
            if factor is not None:
                return factor
        return torch.eye(len(self._scale), dtype=self._matrix.dtype, device=self._matrix.device)

    def solve(self, right: Tensor) -> Tensor:
        """s for right of shape (m,) or (m, k)."""
        columns = right.reshape(len(right), -1) * self._scale[:, None]
        solution = torch.cholesky_solve(columns, self._factor)
        for _ in range(_REFINEMENTS):
            solution += torch.cholesky_solve(columns - self._matrix @ solution, self._factor)
        return (solution * self._scale[:, None]).reshape(right.shape)
