"""How far one can go inside the cone."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.linear import cholesky

_SMALL = 64
_SHORTEST = 1e-6


def step_length(matrix: Tensor, direction: Tensor, fraction: float, accuracy: float) -> float:
    """``min(1, fraction * t)`` for t near the largest with ``matrix + t direction > 0``; 0 where there is none.

    Bracketed by Cholesky factorisations, most of which fail early: first doubling backwards, then halving the bracket
    until its ends agree to ``accuracy``. The lower end, which passed, is what is used.
    """
    if len(matrix) <= _SMALL:
        return min(1.0, fraction * _exact(matrix, direction))

    def inside(t: float) -> bool:
        return cholesky(torch.add(matrix, direction, alpha=t)) is not None

    high = 1.0 / fraction
    if inside(high):
        return 1.0
    low, gap = high * (1 - accuracy), accuracy
    while not inside(low):
        high, gap = low, 2 * gap
        low = high * max(1 - gap, 0.2)
        if low < _SHORTEST:
            return 0.0
    while high - low > 1.5 * accuracy * high:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return fraction * low


def _exact(matrix: Tensor, direction: Tensor) -> float:
    factor = cholesky(matrix)
    if factor is None:
        return 0.0
    half = torch.linalg.solve_triangular(factor, direction, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.T, upper=False)
    least = float(torch.linalg.eigvalsh(whole)[0])
    return -1.0 / least if least < 0 else float("inf")
