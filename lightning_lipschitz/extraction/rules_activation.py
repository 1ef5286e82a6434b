"""Rules for elementwise activations. Their slopes are in the table of ``slopes``; here they become layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lightning_lipschitz.extraction.constants import resolution
from lightning_lipschitz.extraction.expression import Expression, concatenate
from lightning_lipschitz.extraction.functions import SCALED, leaky, of_activation
from lightning_lipschitz.extraction.registry import Activated, Context, Units, rule
from lightning_lipschitz.extraction.samples import broadcast
from lightning_lipschitz.extraction.slopes import NotLipschitzError, Slopes, activations
from lightning_lipschitz.extraction.traced import Layout, Traced, aligned


def activate(context: Context, layout: Layout, before: Expression, units: Units) -> Traced:
    """A new layer, each unit at the place of its pre-activation."""
    return layout.place(new_layer(context, before, units))


def new_layer(context: Context, before: Expression, units: Units) -> Expression:
    """A new layer. Units with alpha == beta are affine and become part of the expression instead.

    Raises:
        ModelSizeError: its matrices would not fit.
    """
    affine = units.alpha == units.beta
    if not before.terms:  # nothing here depends on the input
        return Expression({}, units(before.bias[None])[0])
    if affine.all():
        return _affine_units(before, units)
    context.require_room(before)
    after = Expression.source(len(context.layers) + 1, int((~affine).sum()))
    context.layers.append(Activated(before.select(np.flatnonzero(~affine)), units.take(~affine), context.layer_name))
    if affine.any():
        folded = _affine_units(before.select(np.flatnonzero(affine)), units.take(affine))
        order = np.argsort(np.concatenate([np.flatnonzero(~affine), np.flatnonzero(affine)]))
        after = concatenate([after, folded]).select(order)
    return after


def _affine_units(before: Expression, units: Units) -> Expression:
    return before.scale(units.alpha).shift(units(np.zeros((1, before.size)))[0])


def _uniform(layout: Layout, slopes: Slopes, function: Callable[..., torch.Tensor]) -> Units:
    shape = layout.entries.size
    return Units(np.full(shape, slopes[0]), np.full(shape, slopes[1]), function)


def _register(operator: str, table: Callable[..., Slopes]) -> None:
    function = of_activation(operator)

    @rule(operator)
    def elementwise(context: Context, x: Traced, *args: Any, **kwargs: Any) -> Traced:
        try:
            slopes = table(*args, **kwargs, **resolution(context, table))
        except NotLipschitzError as error:
            raise context.unsupported("never", str(error)) from None
        layout = x.layout()
        units = _uniform(layout, slopes, lambda y: function(y, *args, **kwargs))
        return activate(context, layout, layout.select(x.expression), units)


for _operator, _table in activations().items():
    _register(_operator, _table)


@rule("prelu", "_prelu_kernel")
def prelu(context: Context, x: Traced, weight: Any) -> Traced:
    """One slope for all or one a channel, channels in dimension 1."""
    if isinstance(weight, Traced):
        raise context.unsupported("not yet", "Its slope depends on the input.")
    weight = context.constant(weight)
    if weight.ndim == 1 and len(weight) > 1:
        weight = weight.reshape(-1, *[1] * (x.index.ndim - 2))
    return leaky_by_entry(context, x, weight)


@rule("leaky")
def leaky_by_entry(context: Context, x: Traced, slope: Any) -> Traced:
    """One slope for every entry."""
    layout, slope = aligned(x, context.constant(slope))
    units = Units(np.minimum(slope, 1.0), np.maximum(slope, 1.0), leaky, (slope,))
    return activate(context, layout, layout.select(x.expression), units)


def _register_scaled(function: Callable[..., torch.Tensor], like: str) -> None:
    @rule(function.__name__)
    def scaled(context: Context, x: Traced, scale: Any) -> Traced:
        """One scale for every entry, on which the slopes do not depend."""
        layout, scale = aligned(x, context.constant(scale))
        alpha, beta = activations()[like]()
        units = Units(np.full_like(scale, alpha), np.full_like(scale, beta), function, (scale,))
        return activate(context, layout, layout.select(x.expression), units)


for _function, _like in SCALED.items():
    _register_scaled(_function, _like)


@rule("clamp", "clip")
def clamp(context: Context, x: Traced, min: Any = None, max: Any = None) -> Traced:
    """The identity between two bounds, which may differ from unit to unit."""
    if isinstance(min, Traced) or isinstance(max, Traced):
        raise context.unsupported("not yet", "Clamping between values that depend on the input has no rule.")
    low, high = broadcast(_bound(-np.inf if min is None else min), _bound(np.inf if max is None else max))
    layout, lower = aligned(x, low)
    upper = layout.per_sample(high.expand(layout.shape))
    units = Units(np.zeros_like(lower), (lower < upper).astype(np.float64), torch.clamp, (lower, upper))
    return activate(context, layout, layout.select(x.expression), units)


def _bound(value: torch.Tensor | float) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


@rule("clamp_min")
def clamp_min(context: Context, x: Traced, min: Any) -> Traced:
    """``max(x, min)``."""
    return clamp(context, x, min=min)


@rule("clamp_max")
def clamp_max(context: Context, x: Traced, max: Any) -> Traced:
    """``min(x, max)``."""
    return clamp(context, x, max=max)
