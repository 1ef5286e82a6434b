"""One primal-dual step: Mehrotra's predictor-corrector with the HKM direction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.linear import Equilibrated, cholesky
from lightning_lipschitz.bounds.interior_point.problem import Problem
from lightning_lipschitz.bounds.interior_point.schur import schur_complement
from lightning_lipschitz.bounds.interior_point.step import step_length

_FRACTION = 0.95
_SMALLEST_SIGMA = 1e-3
_SHORTEST = 1e-8


@dataclass
class Iterate:
    """A strictly feasible y = (rho, lam), ``Z(y) = factor factor' > 0``, and a strictly feasible X once it is known."""

    y: Tensor
    Z: Tensor
    factor: Tensor
    X: Tensor | None = None

    @classmethod
    def at(cls, problem: Problem, y: Tensor) -> Iterate | None:
        """None where Z(y) is not positive definite."""
        Z = problem.slack(y)
        factor = cholesky(Z)
        return None if factor is None else cls(y, Z, factor)

    @property
    def rho(self) -> float:
        return float(self.y[0])

    def moved(self, problem: Problem, dy: Tensor, length: float) -> Iterate:
        """The point a step further, cut back where rounding left the cone; without X."""
        while length > _SHORTEST:
            there = Iterate.at(problem, self.y + length * dy)
            if there is not None:
                return there
            length /= 2
        return Iterate(self.y, self.Z, self.factor)

    def lower_bound(self, problem: Problem) -> float:
        """What the optimum cannot be below: tr(C X), less what the residual of the equalities can amount to.

        For the optimal (rho*, lam*), ``0 <= tr(X Z*)`` gives ``rho* tr(E X) >= tr(C X) - sum_g lam*_g tr(B_g X)``; the
        residuals are rounding errors, and lam stands in for lam* there.
        """
        if self.X is None:
            return 0.0
        residual = problem.adjoint(self.X)
        slip = (self.y[1:] * residual[1:]).abs().sum()
        return max(float((problem.value(self.X) - slip) / residual[0]), 0.0)


class System:
    """The linear system of one iteration: ``H dy = A(target)``, ``dX = target - X - sym(X dZ Z^-1)``."""

    def __init__(self, problem: Problem, X: Tensor, factor: Tensor) -> None:
        self.problem, self.X = problem, X
        self.inverse = torch.cholesky_inverse(factor)
        self.images = problem.rows(X)
        H = schur_complement(problem, X, self.images, self.inverse, problem.rows(self.inverse))
        self.system = Equilibrated(H)
        self.trace = problem.adjoint(self.inverse)

    def direction(self, mu: float, correction: Tensor | None) -> tuple[Tensor, Tensor]:
        """(dy, dX) towards ``X Z = mu I``, second-order terms ``correction`` taken off."""
        right = mu * self.trace
        right[0] -= 1.0
        if correction is not None:
            right -= self.problem.adjoint(correction)
        dy = self.system.solve(right)
        dX = self._symmetric_product(self.X, self.images, dy).neg_().sub_(self.X)
        if mu:
            dX.add_(self.inverse, alpha=mu)
        return dy, dX if correction is None else dX.sub_(correction)

    def second_order(self, dy: Tensor, dX: Tensor) -> Tensor:
        """sym(dX dZ Z^-1)."""
        return self._symmetric_product(dX, self.problem.rows(dX), dy)

    def _symmetric_product(self, K: Tensor, images: Tensor, dy: Tensor) -> Tensor:
        product = self.problem.times(K, images.T, dy) @ self.inverse
        return (product + product.T).mul_(0.5)


def advance(problem: Problem, point: Iterate, X: Tensor) -> Iterate:
    """The next pair; X is overwritten."""
    system = System(problem, X, point.factor)
    lower = float(problem.value(X))
    gap = point.rho - lower
    dy, dX = system.direction(0.0, None)
    primal = step_length(X, dX, _FRACTION, 0.2)
    dual = step_length(point.Z, problem.combine(dy), _FRACTION, 0.2)
    ahead = gap + dual * float(dy[0]) - primal * float(problem.value(dX))
    sigma = min(1.0, max((ahead / gap) ** 3, _SMALLEST_SIGMA))
    dy, dX = system.direction(sigma * gap / problem.size, system.second_order(dy, dX))
    primal = step_length(X, dX, _FRACTION, 0.03)
    dual = step_length(point.Z, problem.combine(dy), _FRACTION, 0.03)
    there = point.moved(problem, dy, dual)
    return replace(there, X=X.add_(dX, alpha=primal))
