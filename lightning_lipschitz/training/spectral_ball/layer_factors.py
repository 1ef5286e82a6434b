"""Which layer should give way: one factor a layer, before anything is optimised."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BISECTIONS = 100
_LOWEST, _MARGIN = -640.0, 60.0  # of log mu, inside the range of float64


def shrinkages(norms: Sequence[float], reduction: float) -> list[float]:
    """argmin over t of sum (1 - t_k)^2 norm_k^2 subject to prod t_k = reduction, 0 < t_k <= 1.

    Stationary points have ``t_k (1 - t_k) norm_k^2 = mu`` for all k: two roots each, above and below a half. The
    second derivative allows one layer below, so it is tried for every layer and for none.

    Args:
        norms: Frobenius norms of the layers, > 0.
        reduction: in (0, 1].

    Example:
        >>> [round(t, 4) for t in shrinkages([10.0, 1.0], 0.1)]  # the small layer gives way
        [0.9991, 0.1001]
    """
    least = min(norms)
    relative = [norm / least for norm in norms]
    candidates = [_solve(relative, math.log(reduction), low) for low in (None, *range(len(norms)))]
    even = [reduction ** (1.0 / len(norms))] * len(norms)
    return min([even, *(c for c in candidates if c)], key=lambda t: _cost(relative, t))


def _cost(norms: Sequence[float], factors: Sequence[float]) -> float:
    return sum(((1.0 - t) * norm) ** 2 for t, norm in zip(factors, norms, strict=True))


def _solve(norms: Sequence[float], target: float, low: int | None) -> list[float] | None:
    """The stationary point with layer ``low`` on its lower root, by bisection on log mu; None where there is none.

    Args:
        norms: relative to the least of them.
        target: log of the reduction.
        low: a layer, or None.
    """
    a, b = max(target, _LOWEST) - _MARGIN, -math.log(4.0)

    def excess(t: float) -> float:
        return sum(map(math.log, _factors(norms, math.exp(t), low))) - target

    if excess(a) * excess(b) > 0:
        return None
    for _ in range(_BISECTIONS):
        middle = 0.5 * (a + b)
        a, b = (middle, b) if excess(a) * excess(middle) > 0 else (a, middle)
    factors = _factors(norms, math.exp(a), low)
    last = low or 0
    factors[last] *= math.exp(target - sum(map(math.log, factors)))
    return factors


def _factors(norms: Sequence[float], mu: float, low: int | None) -> list[float]:
    """The root of ``t (1 - t) norm^2 = mu`` above a half, below it for layer ``low``; without cancellation."""
    shares = [mu / norm**2 for norm in norms]
    upper = [0.5 * (1.0 + math.sqrt(max(0.0, 1.0 - 4.0 * share))) for share in shares]
    return [share / t if k == low else t for k, (share, t) in enumerate(zip(shares, upper, strict=True))]
