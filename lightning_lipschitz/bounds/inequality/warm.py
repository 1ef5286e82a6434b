"""Largest eigenvalues of matrices that change little from call to call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WarmEigenvalues:
    """One power step a call, from where the last call ended: a number from below, for a product with a vector.

    The gradient is that of the Rayleigh quotient with the vector held. In place of
    :func:`.sweep.largest_eigenvalue`, where a factorisation behind it finds out what is too small.

    Attributes:
        vectors: of length one, by the number of the matrix.

    Example:
        >>> find, matrix = WarmEigenvalues(), torch.diag(torch.tensor([2.0, 1.0]))
        >>> find(0, matrix).item(), find(0, matrix + 1.0).item() <= 3.0 + 1.0  # eigenvalues of the second: 2.38, 3.62
        (2.0, True)
    """

    def __init__(self) -> None:
        self.vectors: dict[int, Tensor] = {}

    def __call__(self, number: int, matrix: Tensor) -> Tensor:
        with torch.no_grad():
            vector = self.vectors.get(number)
            if vector is None or vector.shape != matrix.shape[:1]:
                vector = torch.linalg.eigh(matrix)[1][:, -1]
            else:
                moved = matrix @ vector.to(matrix)
                vector = moved / moved.norm().clamp(min=torch.finfo(moved.dtype).tiny)
            self.vectors[number] = vector
        return vector @ (matrix @ vector)

    def state_dict(self) -> dict[int, Tensor]:
        """The vectors on the CPU."""
        return {number: vector.to("cpu", copy=True) for number, vector in self.vectors.items()}

    def load_state_dict(self, state: Mapping[int, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.vectors = dict(state)
