"""L-BFGS for a function that is only defined inside of an open set: steps that leave it are halved."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

MEMORY = 30
_SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo)
_HALVINGS = 40


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A function at one place.

    Attributes:
        value: of the function.
        gradient: computed when it is asked for.
    """

    value: float
    gradient: Callable[[], Tensor]


Function = Callable[[Tensor], Evaluation | None]


def minimise(function: Function, x: Tensor, *, iterations: int, tolerance: float) -> tuple[Tensor, int]:
    """A point with a lower value (Nocedal, Wright, "Numerical Optimization", 2006, algorithm 7.4).

    Args:
        function: None outside of its set.
        x: inside, shape (n,).
        iterations: at most so many steps.
        tolerance: stop where a step promises less decrease.

    Returns:
        The last point, and the number of values computed.
    """
    here = function(x)
    if here is None:
        raise ValueError("the start is outside")
    gradient, evaluations = here.gradient(), 1
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)
    for _ in range(iterations):
        direction = -_inverse_hessian(gradient, pairs)
        slope = float(gradient @ direction)
        if -slope <= tolerance:
            break
        t = 1.0 if pairs else min(1.0, 1.0 / float(gradient.norm()))
        for _ in range(_HALVINGS):
            moved = x + t * direction
            there = function(moved)
            evaluations += 1
            if there is not None and there.value <= here.value + _SUFFICIENT * t * slope:
                break
            t *= 0.5
        else:
            break
        after = there.gradient()
        step, change = moved - x, after - gradient
        if float(step @ change) > 1e-12 * float(step.norm() * change.norm()):
            pairs.append((step, change))
        x, here, gradient = moved, there, after
    return x, evaluations


def _inverse_hessian(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """Times the gradient, by the two loops."""
    q = gradient.clone()
    shares = []
    for step, change in reversed(pairs):
        share = float(step @ q) / float(step @ change)
        shares.append(share)
        q -= share * change
    if pairs:
        step, change = pairs[-1]
        q *= float(step @ change) / float(change @ change)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        q += step * (share - float(change @ q) / float(step @ change))
    return q
