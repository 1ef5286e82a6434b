r"""Rules for what is Lipschitz on bounded values only: products, powers, exponentials, logarithms, roots, quotients.

Between which numbers a value lies, whatever the input of the model, is worked out by ``extraction.intervals``.

A product of two values is two units and their sum. For two inputs, with values (x, y) and (x', y'),

.. math:: x y - x' y' = y\,(x - x') + x'\,(y - y'),

so that it changes by what a unit adds that reads x, with a slope between the smallest and the largest y, and one that
reads y, with a slope in the interval of x. A gate ``sigmoid(x) * y`` has the slopes [0, 1] towards y.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lightning_lipschitz.extraction.intervals import interval
from lightning_lipschitz.extraction.refusals import BOUNDED_FACTOR, refusal, unknown
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.graph import Concatenation, Elementwise, Gather, Sum
from lightning_lipschitz.graph.arrays import Array

_WIDER = 2.0**-48  # more than a few operations, and an exponential, round
_NARROW = 2.0**-12  # of slopes: narrower, and interior points fail


def product(context: Context, x: Value, y: Value) -> Value:
    """``x y`` entry by entry.

    Raises:
        UnsupportedModuleError: one of them may grow without bound.
    """
    if x.node == y.node and torch.equal(*torch.broadcast_tensors(x.index, y.index)):  # type: ignore[no-untyped-call]
        return power(context, x, 2)
    (one, two), layout = context.builder.pair(x, y)
    (a, b), (c, d) = interval(context.builder, one), interval(context.builder, two)
    if not np.all(np.isfinite([a, b, c, d])):
        raise context.unsupported("bounded inputs", BOUNDED_FACTOR)
    size = layout.entries.size
    corners = np.stack([a * c, a * d, b * c, b * d])
    alpha, beta = _outwards(np.concatenate([c, a]), np.concatenate([d, b]))
    # A factor that is zero for every input, such as an initial state, has no share in the change.
    zero, other = (a == 0.0) & (b == 0.0), (c == 0.0) & (d == 0.0)
    still = np.tile(zero | other, 2)
    alpha, beta = np.where(still, 0.0, alpha), np.where(still, 0.0, beta)
    joint = context.builder.add(Concatenation(sources=(one, two), size=2 * size))
    units = Elementwise(sources=(joint,), size=2 * size, alpha=alpha, beta=beta, name=context.name)

    def run(values: torch.Tensor) -> torch.Tensor:
        left, right = values[..., :size], values[..., size:]
        return torch.cat([left * right, torch.zeros_like(left)], dim=-1)

    low, high = _outwards(corners.min(axis=0), corners.max(axis=0))
    nothing = np.zeros(size)
    made = context.builder.add(units, None, run, (np.append(low, nothing), np.append(high, nothing)))
    parts = (np.arange(size), np.arange(size, 2 * size))
    halves = tuple(context.builder.add(Gather(sources=(made,), indices=each)) for each in parts)
    return layout.place(context.builder.add(Sum(sources=halves, size=size)))


def _outwards(low: Array, high: Array) -> tuple[Array, Array]:
    """Further apart by more than rounding, and by enough for a solver that divides by the difference."""
    size = np.maximum(np.abs(low), np.abs(high))
    more = np.where(high - low < _NARROW * size, _NARROW, _WIDER) * size
    return low - more, high + more


def _increasing(slope: Callable[[Array], Array]) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Slopes of a function whose derivative does not fall."""
    return lambda low, high: (slope(low), slope(high))


def _decreasing(slope: Callable[[Array], Array]) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Slopes of a function whose derivative does not rise."""
    return lambda low, high: (slope(high), slope(low))


def _on_positive(slopes: Callable[[Array, Array], tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    return lambda low, high: slopes(np.where(low > 0.0, low, 0.0), high)


_SLOPES: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "exp": _increasing(np.exp),
    "expm1": _increasing(np.exp),
    "sinh": lambda low, high: (np.ones_like(low), np.cosh(np.maximum(np.abs(low), np.abs(high)))),
    "log": _on_positive(_decreasing(lambda x: 1.0 / x)),
    "log1p": lambda low, high: _on_positive(_decreasing(lambda x: 1.0 / x))(1.0 + low, 1.0 + high),
    "sqrt": _on_positive(_decreasing(lambda x: 0.5 / np.sqrt(x))),
    "rsqrt": _on_positive(_increasing(lambda x: -0.5 * x**-1.5)),
}


def on_interval(
    context: Context,
    x: Value,
    operator: str,
    slopes: Callable[[Array, Array], tuple[Array, Array]],
    function: Callable[[torch.Tensor], torch.Tensor],
) -> Value:
    """Units whose slopes depend on between which numbers they read.

    Args:
        context: where they stand.
        x: what they read.
        operator: whose refusal it is where the slopes are unbounded.
        slopes: smallest and largest derivative on intervals, given by their ends.
        function: what they compute.

    Raises:
        UnsupportedModuleError: the slopes are unbounded there.
    """
    number, layout = context.builder.laid(x)
    with np.errstate(all="ignore"):
        alpha, beta = _outwards(*slopes(*interval(context.builder, number)))
    if not np.all(np.isfinite([alpha, beta])):
        raise context.unsupported(*(refusal(operator) or unknown()))
    node = Elementwise(sources=(number,), size=layout.entries.size, alpha=alpha, beta=beta, name=context.name)
    return layout.place(context.builder.add(node, None, function))


def _register(operator: str) -> None:
    function = getattr(torch, operator)

    @rule(operator)
    def steep(context: Context, x: Value) -> Value:
        return on_interval(context, x, operator, _SLOPES[operator], function)


for _operator in _SLOPES:
    _register(_operator)


def _away_from_zero(low: Array, high: Array) -> tuple[Array, Array]:
    away = (low > 0.0) | (high < 0.0)
    nearest, furthest = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
    """Slopes of ``1 / x``."""
    return -1.0 / np.where(away, nearest, 0.0) ** 2, -1.0 / furthest**2


@rule("reciprocal")
def reciprocal(context: Context, x: Value) -> Value:
    """``1 / x`` of what stays away from zero."""
    return on_interval(context, x, "reciprocal", _away_from_zero, torch.reciprocal)


@rule("square")
def square(context: Context, x: Value) -> Value:
    """``x^2``."""
    return power(context, x, 2)


@rule("pow")
def power(context: Context, x: Any, exponent: Any) -> Value:
    """``x^p``, of derivative ``p x^(p - 1)``, for whole p > 0, and for all others where x is positive."""
    if not isinstance(x, Value) or not isinstance(exponent, (int, float)):
        raise context.unsupported("not yet", "Only a power with a known number as exponent has a rule.")
    if exponent == 1:
        return x
    whole = exponent == int(exponent) and exponent > 0

    def slopes(low: Array, high: Array) -> tuple[Array, Array]:
        ends = np.stack([low, high, np.clip(0.0, low, high)])
        ends = ends if whole else np.where(low > 0.0, ends, np.nan)
        derivative = exponent * ends ** (exponent - 1)
        return derivative.min(axis=0), derivative.max(axis=0)

    return on_interval(context, x, "pow", slopes, lambda y: y**exponent)
