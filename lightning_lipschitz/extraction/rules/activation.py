"""Rules for elementwise activations, whose slopes are in the table of ``extraction.slopes``, and for the larger of two
values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lightning_lipschitz.extraction.constants import resolution
from lightning_lipschitz.extraction.functions import SCALED, leaky, of_activation
from lightning_lipschitz.extraction.intervals import VALUES
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules.bounded import product
from lightning_lipschitz.extraction.rules.linear import scaled
from lightning_lipschitz.extraction.slopes import NotLipschitzError, activations
from lightning_lipschitz.extraction.value import Layout, Value, broadcast
from lightning_lipschitz.graph import Elementwise, Extremum
from lightning_lipschitz.graph.arrays import Array


def activation(context: Context, operator: str, x: Value, *args: Any, **kwargs: Any) -> Value:
    """An activation of the table of slopes, by its operator and that operator's arguments."""
    table, function = activations()[operator], of_activation(operator)
    try:
        slopes = table(*args, **kwargs, **resolution(context, table))
        values = VALUES[operator](*args, **kwargs) if operator in VALUES else None
    except NotLipschitzError as error:
        raise context.unsupported("never", str(error)) from None
    return _uniform(context, x, slopes, lambda y: function(y, *args, **kwargs), values)


def _register(operator: str) -> None:
    @rule(operator)
    def elementwise(context: Context, x: Value, *args: Any, **kwargs: Any) -> Value:
        return activation(context, operator, x, *args, **kwargs)


def _uniform(
    context: Context,
    x: Value,
    slopes: tuple[float, float],
    function: Callable[[torch.Tensor], torch.Tensor],
    values: tuple[float, float] | None,
) -> Value:
    """One kind of unit everywhere, so that it does not matter where the entries lie."""
    if not x.index.numel():
        return x
    x = context.builder.compact(x)
    alpha, beta = slopes
    if alpha == beta:  # affine, and its own multiple
        shift = function(torch.zeros((), dtype=torch.float64))
        return scaled(context, x, torch.tensor(alpha, dtype=torch.float64), 0.0, shift if torch.any(shift) else None)
    node = Elementwise(sources=(x.node,), size=x.size, alpha=np.array(alpha), beta=np.array(beta), name=context.name)
    return Value(context.builder.add(node, None, function, values), x.size, x.index, x.batch)


for _operator in activations():
    _register(_operator)


@rule("glu")
def glu(context: Context, x: Value, dim: int = -1) -> Value:
    """One half times the logistic function of the other."""
    half, gate = (x.moved(each) for each in x.index.chunk(2, dim))
    return product(context, half, activation(context, "sigmoid", gate))


@rule("prelu", "_prelu_kernel")
def prelu(context: Context, x: Value, weight: Any) -> Value:
    """One slope for all or one a channel, channels in dimension 1."""
    if isinstance(weight, Value):
        raise context.unsupported("not yet", "Its slope depends on the input.")
    weight = context.constant(weight)
    if weight.ndim == 1 and len(weight) > 1:
        weight = weight.reshape(-1, *[1] * (x.index.ndim - 2))
    return leaky_by_entry(context, x, weight)


@rule("leaky")
def leaky_by_entry(context: Context, x: Value, slope: Any) -> Value:
    """One slope for every entry."""
    number, layout, slope = _aligned(context, x, slope)
    known, slopes = torch.from_numpy(slope), (np.minimum(slope, 1.0), np.maximum(slope, 1.0))
    return _units(context, number, layout, slopes, lambda y: leaky(y, known.to(y.device)))


def _register_scaled(function: Callable[..., torch.Tensor], like: str) -> None:
    @rule(function.__name__)
    def by_entry(context: Context, x: Value, scale: Any) -> Value:
        """One scale for every entry, on which the slopes do not depend."""
        number, layout, scale = _aligned(context, x, scale)
        alpha, beta = activations()[like]()
        known, slopes = torch.from_numpy(scale), (np.full_like(scale, alpha), np.full_like(scale, beta))
        return _units(context, number, layout, slopes, lambda y: function(y, known.to(y.device)))


for _function, _like in SCALED.items():
    _register_scaled(_function, _like)


def _aligned(context: Context, x: Value, constant: Any) -> tuple[int, Layout, Array]:
    """The node and the layout of a value broadcast against a known tensor, and that tensor by entry."""
    index, constant = broadcast(x.index, context.constant(constant))
    number, layout = context.builder.laid(x.moved(index))
    return number, layout, layout.per_sample(constant)


def _units(
    context: Context,
    number: int,
    layout: Layout,
    slopes: tuple[Array, Array],
    function: Callable[..., torch.Tensor],
    values: tuple[Array, Array] | None = None,
) -> Value:
    """Units that differ from entry to entry."""
    alpha, beta = slopes
    node = Elementwise(sources=(number,), size=len(alpha), alpha=alpha, beta=beta, name=context.name)
    return layout.place(context.builder.add(node, None, function, values))


@rule("clamp", "clip")
def clamp(context: Context, x: Value, min: Any = None, max: Any = None) -> Value:
    """The identity between two bounds, which may differ from unit to unit."""
    if isinstance(min, Value) or isinstance(max, Value):
        raise context.unsupported("not yet", "Clamping between values that depend on the input has no rule.")
    low, high = (
        torch.as_tensor(each, dtype=torch.float64, device="cpu")
        for each in (-torch.inf if min is None else min, torch.inf if max is None else max)
    )
    index, low, high = broadcast(x.index, low, high)
    number, layout = context.builder.laid(x.moved(index))
    lower, upper = layout.per_sample(low), layout.per_sample(high)
    bounds = torch.from_numpy(lower), torch.from_numpy(upper)
    slopes = np.zeros_like(lower), (lower < upper).astype(np.float64)
    values = np.minimum(lower, upper), upper  # where they cross, the upper one is given

    def run(y: torch.Tensor) -> torch.Tensor:
        return torch.clamp(y, *(each.to(y.device) for each in bounds))

    return _units(context, number, layout, slopes, run, values)


@rule("clamp_min")
def clamp_min(context: Context, x: Value, min: Any) -> Value:
    """``max(x, min)``."""
    return clamp(context, x, min=min)


@rule("clamp_max")
def clamp_max(context: Context, x: Value, max: Any) -> Value:
    """``min(x, max)``."""
    return clamp(context, x, max=max)


def _extremum(context: Context, x: Any, y: Any, smallest: bool) -> Value:
    if not (isinstance(x, Value) and isinstance(y, Value)):
        value, known = (x, y) if isinstance(x, Value) else (y, x)
        return clamp(context, value, **{"max" if smallest else "min": known})
    sources, layout = context.builder.pair(x, y)
    if sources[0] == sources[1]:
        return layout.place(sources[0])
    node = Extremum(sources=sources, size=layout.entries.size, smallest=smallest, name=context.name)
    return layout.place(context.builder.add(node))


@rule("maximum")
def maximum(context: Context, x: Any, y: Any) -> Value:
    """The larger one at every place; of a value and a known tensor it is a clamp."""
    return _extremum(context, x, y, smallest=False)


@rule("minimum")
def minimum(context: Context, x: Any, y: Any) -> Value:
    """The smaller one at every place; of a value and a known tensor it is a clamp."""
    return _extremum(context, x, y, smallest=True)
