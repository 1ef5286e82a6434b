"""One primal-dual step: Mehrotra's predictor-corrector with the HKM direction."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.definite import Definite
from lightning_lipschitz.bounds.interior_point.linear import Equilibrated
from lightning_lipschitz.bounds.interior_point.problem import Problem
from lightning_lipschitz.bounds.interior_point.schur import product_traces, schur_complement

_FIRST_REACH, _MEMORY = 0.55, 0.3
_SMALLEST_SIGMA = 1e-3
_ACCURACY, _ROUGH = 0.02, 0.1  # of step lengths, and of the predictor's
_SHORTEST = 1e-8


@dataclass
class Iterate:
    """A strictly feasible y = (rho, lam), ``Z(y) > 0``, and a strictly feasible X once it is known.

    ``reach`` is a running mean of the shorter of the two lengths of a step.
    """

    y: Tensor
    Z: Definite
    X: Definite | None = None
    reach: float = _FIRST_REACH

    @classmethod
    def at(cls, problem: Problem, y: Tensor) -> Iterate | None:
        """None where Z(y) is not positive definite."""
        Z = Definite.of(problem.slack(y))
        return None if Z is None else cls(y, Z)

    @property
    def rho(self) -> float:
        return float(self.y[0])

    def moved(self, problem: Problem, dy: Tensor, length: float) -> Iterate:
        """The point a step further, cut back where rounding left the cone; without X."""
        while length > _SHORTEST:
            there = Iterate.at(problem, self.y + length * dy)
            if there is not None:
                return there
            length *= 0.8
        return Iterate(self.y, self.Z)

    def lower_bound(self, problem: Problem) -> float:
        """What the optimum cannot be below: tr(C X), less what the residual of the equalities can amount to.

        For the optimal (rho*, lam*), ``0 <= tr(X Z*)`` gives ``rho* tr(E X) >= tr(C X) - sum_g lam*_g tr(B_g X)``; the
        residuals are rounding errors, and lam stands in for lam* there.
        """
        if self.X is None:
            return 0.0
        residual = problem.adjoint(self.X.matrix)
        slip = (self.y[1:] * residual[1:]).abs().sum()
        return max(float((problem.value(self.X.matrix) - slip) / residual[0]), 0.0)


class System:
    """The linear system of one iteration: ``H dy = A(target)``, ``dX = target - X - sym(X dZ Z^-1)``."""

    def __init__(self, problem: Problem, X: Tensor, inverse: Tensor) -> None:
        self._problem, self._X, self._inverse = problem, X, inverse
        self._AX, self._AV = problem.rows(X), problem.rows(inverse)
        self._system = Equilibrated(schur_complement(problem, X, self._AX, inverse, self._AV))
        self._trace = problem.adjoint(inverse)

    def direction(self, mu: float, second_order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(dy, dX) towards ``X Z = mu I``, with ``second_order = dX dZ`` of the predictor taken into account."""
        right = mu * self._trace
        right[0] -= 1.0
        if second_order is not None:
            images = self._problem.rows(second_order)
            right -= product_traces(self._problem, second_order, images, self._inverse, self._AV)
        dy = self._system.solve(right)
        product = self._problem.times(self._X, self._AX.T, dy)
        if second_order is not None:
            product += second_order
        product = product @ self._inverse
        dX = torch.add(product, product.T).mul_(-0.5).sub_(self._X)
        return dy, dX.add_(self._inverse, alpha=mu)

    def second_order(self, dy: Tensor, dX: Tensor) -> Tensor:
        """dX dZ."""
        return self._problem.times(dX, self._problem.rows(dX).T, dy)


def advance(problem: Problem, point: Iterate, X: Definite) -> Iterate:
    """The next pair, from ``point`` with ``point.X = X``."""
    system = System(problem, X.matrix, point.Z.inverse)
    gap = point.rho - float(problem.value(X.matrix))
    dy, dX = system.direction(0.0)
    primal = X.step_length(dX, 0.95, _ROUGH)
    dual = point.Z.step_length(problem.combine(dy), 0.95, _ROUGH)
    ahead = gap + dual * float(dy[0]) - primal * float(problem.value(dX))
    sigma, fraction = _sigma(ahead / gap, point.reach), 0.9 + 0.09 * min(primal, dual)
    dy, dX = system.direction(sigma * gap / problem.size, system.second_order(dy, dX))
    primal = X.step_length(dX, fraction, _ACCURACY)
    dual = point.Z.step_length(problem.combine(dy), fraction, _ACCURACY)
    reach = _MEMORY * point.reach + (1.0 - _MEMORY) * min(primal, dual)
    return replace(point.moved(problem, dy, dual), X=_moved(X, dX, primal), reach=reach)


def _sigma(left: float, reach: float) -> float:
    """How much of mu to keep: the geometric mean of two rules.

    Mehrotra's looks at the part of the gap that the predictor would leave. On deep networks it can be near one for
    steps on end, though the steps then taken are long; the other looks only at how long the last steps were, and aims
    too low on wide networks.
    """
    mehrotra = min(1.0, max(left, 0.0) ** 3)
    return max(math.sqrt(mehrotra * (1.0 - reach) ** 1.5), _SMALLEST_SIGMA)


def _moved(X: Definite, dX: Tensor, length: float) -> Definite:
    """X a step further, cut back where the estimate of the length was too long."""
    while length > _SHORTEST:
        there = Definite.of(torch.add(X.matrix, dX, alpha=length))
        if there is not None:
            return there
        length *= 0.8
    return X
