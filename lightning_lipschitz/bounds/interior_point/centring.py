"""From strictly feasible multipliers to a primal-dual pair near the central path.

Newton steps of the dual barrier need Z^-1 only, a fifth of the work of a primal-dual step, and end with an X that
satisfies the primal equalities: a strictly feasible pair, centred, from the dual side alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.definite import Definite
from lightning_lipschitz.bounds.interior_point.iterate import Iterate
from lightning_lipschitz.bounds.interior_point.linear import Equilibrated, cholesky
from lightning_lipschitz.bounds.interior_point.problem import Problem
from lightning_lipschitz.bounds.interior_point.schur import schur_complement

# How far below the closest mu to look for a primal point: heuristics, both.
_RATIO, _REACH = 1.5, 8
_FRACTION = 0.7


@dataclass
class Newton:
    """Newton's step for the barrier problem ``min rho / mu - logdet Z``, for every mu at once: u - v / mu.

    ``closest`` is the 1/mu whose point on the central path is nearest, ``decrement`` the distance to it in the norm of
    the Hessian (Newton's decrement).
    """

    inverse: Tensor
    images: Tensor
    u: Tensor
    v: Tensor
    closest: float
    decrement: float

    @classmethod
    def at(cls, problem: Problem, Z: Definite) -> Newton:
        inverse = Z.inverse
        images = problem.rows(inverse)
        hessian = Equilibrated(schur_complement(problem, inverse, images, inverse, images))
        gradient = problem.adjoint(inverse)
        objective = torch.zeros_like(gradient)
        objective[0] = 1.0
        u, v = hessian.solve(torch.stack([gradient, objective], dim=1)).unbind(1)
        closest = float(u[0] / v[0])
        decrement = float((gradient - closest * objective) @ (u - closest * v))
        return cls(inverse, images, u, v, closest, max(decrement, 0.0) ** 0.5)

    def direction(self, inverse_mu: float) -> Tensor:
        return self.u - inverse_mu * self.v

    def primal(self, problem: Problem, Z: Definite) -> tuple[float, Definite | None]:
        """``X = mu Z^-1 (Z - dZ) Z^-1``, which satisfies the primal equalities, for the smallest mu with X > 0.

        Returns:
            1/mu, and X or None where there is none: then 1/mu is ``closest``.
        """
        found, best = self.closest, None
        for power in range(_REACH):
            inverse_mu = self.closest * _RATIO**power
            dy = self.direction(inverse_mu)
            if cholesky(Z.matrix - problem.combine(dy)) is None:
                break
            found, best = inverse_mu, dy
        if best is None:
            return found, None
        X = self.inverse - problem.times(self.inverse, self.images.T, best) @ self.inverse
        return found, Definite.of((X + X.T).mul_(0.5 / found))


def centre(problem: Problem, point: Iterate) -> Iterate:
    """One Newton step towards the closest point of the central path; with a strictly feasible X once there is one."""
    newton = Newton.at(problem, point.Z)
    inverse_mu, X = newton.primal(problem, point.Z)
    dy = newton.direction(inverse_mu)
    length = point.Z.step_length(problem.combine(dy), _FRACTION, 0.1)
    return replace(point.moved(problem, dy, length), X=X)
