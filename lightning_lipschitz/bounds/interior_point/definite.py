"""A positive definite matrix, and how far one can go from it inside the cone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.linear import cholesky

# Above this size a Cholesky factorisation costs more than a Lanczos run.
_LARGE = 250
_LEAST_STEPS, _LOOK_EVERY, _MOST_STEPS = 8, 3, 40
_SHORTEST = 1e-6


@dataclass
class Definite:
    """``matrix = factor factor'``, factor lower triangular."""

    matrix: Tensor
    factor: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Definite | None:
        """None where the matrix is not positive definite to working accuracy."""
        factor = cholesky(matrix)
        return None if factor is None else cls(matrix, factor)

    @cached_property
    def inverse(self) -> Tensor:
        return torch.cholesky_inverse(self.factor)

    def step_length(self, direction: Tensor, fraction: float, accuracy: float) -> float:
        """``min(1, fraction * t)`` for t near the largest with ``matrix + t direction > 0``, or a little below it.

        Args:
            direction: symmetric.
            fraction: in (0, 1), how much of the way to the boundary to go at most.
            accuracy: relative, of t.
        """
        if len(self.matrix) > _LARGE:
            return min(1.0, fraction * self._lanczos(direction, fraction, accuracy))
        return self._bracket(direction, fraction, accuracy)

    def _bracket(self, direction: Tensor, fraction: float, accuracy: float) -> float:
        """By Cholesky factorisations, most of which fail early: doubling backwards, then halving the bracket."""

        def inside(t: float) -> bool:
            return cholesky(torch.add(self.matrix, direction, alpha=t)) is not None

        high = 1.0 / fraction
        if inside(high):
            return 1.0
        low, back = high * (1 - accuracy), accuracy
        while not inside(low):
            high, back = low, 2 * back
            low = high * max(1 - back, 0.2)
            if low < _SHORTEST:
                return 0.0
        while high - low > 1.5 * accuracy * high:
            middle = (low + high) / 2
            low, high = (middle, high) if inside(middle) else (low, middle)
        return fraction * low

    def _lanczos(self, direction: Tensor, fraction: float, accuracy: float) -> float:
        """-1 / (least eigenvalue of ``matrix^-1 direction``, less its error bound), by Lanczos in the matrix's norm.

        With w = matrix^-1 r, ``w'r`` is the squared norm of w, so the matrix itself is never multiplied.
        """
        n, steps = len(direction), min(_MOST_STEPS, len(direction))
        W, R = direction.new_empty(steps, n), direction.new_empty(steps, n)
        diagonal: list[float] = []
        beside: list[float] = []
        r = _start_vector(n, direction)
        w, least = self.inverse.mv(r), -1.0
        for j in range(steps):
            beta = max(float(w @ r), 0.0) ** 0.5
            invariant = bool(j) and beta <= 1e-8 * max(map(abs, diagonal))
            if invariant or (j >= _LEAST_STEPS and (j - _LEAST_STEPS) % _LOOK_EVERY == 0):
                least, error = _least_ritz(diagonal, beside[1:], beta)
                if invariant or error <= accuracy * max(abs(least), fraction):
                    break
            beside.append(beta)
            W[j], R[j] = w / beta, r / beta
            r = direction.mv(W[j])
            w = self.inverse.mv(r)
            coefficients = W[: j + 1] @ r
            diagonal.append(float(coefficients[j]))
            r, w = r - coefficients @ R[: j + 1], w - coefficients @ W[: j + 1]
        return -1.0 / least if least < 0 else float("inf")


def _least_ritz(diagonal: list[float], beside: list[float], beta: float) -> tuple[float, float]:
    """The least eigenvalue of a tridiagonal matrix less its error bound, and that bound."""
    ritz, vectors = eigh_tridiagonal(
        diagonal, beside, select="i", select_range=(0, 0), check_finite=False, lapack_driver="stebz"
    )
    error = beta * abs(float(vectors[-1, 0]))
    return float(ritz[0]) - error, error


def _start_vector(n: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, generator=generator, dtype=torch.float64).to(like.device)
