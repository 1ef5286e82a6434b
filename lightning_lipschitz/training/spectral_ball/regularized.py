"""The projection with the bound free: minimise over the weights and rho at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log

from torch import Tensor

from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.training.result import State
from lightning_lipschitz.training.spectral_ball.certified_set import CertifiedSet

MOST_PROJECTIONS = 60
LOWEST = -600.0  # of log rho, well inside float64


@dataclass(frozen=True, eq=False)
class Regularized:
    """The minimiser.

    Attributes:
        weights: float64, in the set to rounding.
        rho: the squared bound.
        state: for the next call on similar weights.
        objective: the value attained.
        projections: made in the search.
    """

    weights: list[Tensor]
    rho: float
    state: State | None
    objective: float
    projections: int


def regularized(
    certified_set: CertifiedSet,
    weights: Sequence[Tensor],
    *,
    weight: float,
    penalty: float,
    state: State | None = None,
    rtol: float = 1e-3,
) -> Regularized:
    r""":math:`\arg\min_{\rho, \bar W} \mu \rho + \frac r2 \sum_k |\bar W_k - W_k|_F^2` subject to :math:`M(\rho,
    \lambda; \bar W) \succeq 0`.

    The set is convex in (rho, W) together, so the least value for given rho is a convex function of rho: a search in
    one variable, every projection started from the last.

    Args:
        certified_set: multipliers and slopes; its rho is where the search starts.
        weights: shape (n_k, n_{k-1}), first layer first.
        weight: mu > 0, objective per squared bound.
        penalty: r > 0.
        state: of an earlier projection.
        rtol: of rho; the squared distances are found to a hundredth of it, since slopes are only as good as their root.

    Raises:
        ArgumentError, ShapeError.
    """
    _check(weight=weight, penalty=penalty, rtol=rtol)
    search = _Search(certified_set, weights, weight / penalty, state, rtol)
    low, high = search.bracket(log(certified_set.multipliers.rho))
    while high - low > rtol and search.projections < MOST_PROJECTIONS:
        low, high = search.narrow(low, high)
    rho, found = search.best
    objective = weight * rho + 0.5 * penalty * found.distance**2
    return Regularized(found.weights, rho, found.state, objective, search.projections)


class _Search:
    """The root of the derivative of ``t -> ratio e^t + v(e^t)`` in t = log rho, v the least half squared distance.

    v is convex. Only the first layer's entries of G carry rho, as rho^(-1/2), so by the envelope theorem
    ``v'(rho) = - <V_1 - W_1, W_1> / (2 rho)``: at the optimum V - W is the adjoint of G at the dual.
    """

    def __init__(
        self, certified_set: CertifiedSet, weights: Sequence[Tensor], ratio: float, state: State | None, rtol: float
    ) -> None:
        self._set, self._weights, self._ratio, self._rtol = certified_set, weights, ratio, rtol
        self._state = state
        self._slopes: dict[float, float] = {}
        self._least = float("inf")
        self.projections = 0

    def slope(self, t: float) -> float:
        """The derivative at t, divided by the positive ``ratio e^t``."""
        rho = exp(t)
        here = self._set.with_rho(rho)
        found = here.project(self._weights, self._state, rtol=self._rtol / 100)
        self.projections += 1
        value = self._ratio * rho + 0.5 * found.distance**2
        if value < self._least:
            self._least, self.best = value, (rho, found)
        if found.distance == 0.0:
            return 1.0
        self._state = found.state
        first = found.weights[0]
        pull = float(((self._weights[0].detach().to(first) - first) * first).sum())
        self._slopes[t] = 1.0 - pull / (2.0 * rho * self._ratio)
        return self._slopes[t]

    def bracket(self, t: float) -> tuple[float, float]:
        """An interval whose ends have slopes of different sign."""
        step, first = log(2.0), self.slope(t)
        for _ in range(MOST_PROJECTIONS // 2):
            other = t - step if first > 0 else t + step
            if (self.slope(other) > 0) != (first > 0):
                return min(t, other), max(t, other)
            t, step = other, 2.0 * step
            if not LOWEST < t < -LOWEST:
                break
        return t, t

    def narrow(self, low: float, high: float) -> tuple[float, float]:
        """A smaller one: the secant's zero, kept away from the ends."""
        a, b = self._slopes.get(low, -1.0), self._slopes.get(high, 1.0)
        share = min(max(-a / (b - a), 0.1), 0.9) if b > a else 0.5
        middle = low + share * (high - low)
        return (low, middle) if self.slope(middle) > 0 else (middle, high)


def _check(**arguments: float) -> None:
    for name, value in arguments.items():
        if not 0 < value < inf:
            raise ArgumentError(name, value, "a positive finite number")
