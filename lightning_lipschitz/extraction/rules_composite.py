"""Operators with one definition for both readings: several sums and products in one, and tensors that are filled."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF
from lightning_lipschitz.extraction.constants import known

Rule = Callable[..., Any]

_FILLED = "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty fill zero"


def register_composites(
    rule: Callable[[str], Callable[[Rule], Rule]], kind: type, sum_: Rule, product: Rule, quotient: Rule, scale: Rule
) -> None:
    """Make rules of a registry from its sums, products and quotients, which refuse what has no finite constant.

    Args:
        rule: the registry's decorator.
        kind: of values that depend on the input.
        sum_: ``x + alpha y``.
        product: ``x y``.
        quotient: ``x / y``.
        scale: ``factors x``, the factors known to a relative error.
    """

    def apply(context: Any, of_values: Rule, of_numbers: Rule, x: Any, y: Any, **kwargs: Any) -> Any:
        if isinstance(x, kind) or isinstance(y, kind):
            return of_values(context, x, y, **kwargs)
        return of_numbers(context.constant(x), context.constant(y))

    @rule("lerp")
    def lerp(context: Any, x: Any, y: Any, weight: Any) -> Any:
        """``x + weight (y - x)``; with a known weight ``(1 - weight) x + weight y``, which reads x once."""
        if isinstance(x, kind) and not isinstance(weight, kind):
            kept = scale(context, x, 1.0 - context.constant(weight), UNIT_ROUNDOFF)
            return sum_(context, kept, apply(context, product, operator.mul, y, weight))
        way = apply(context, lambda c, a, b: sum_(c, a, b, alpha=-1), operator.sub, y, x)
        return sum_(context, x, apply(context, product, operator.mul, way, weight))

    @rule("addcmul")
    def addcmul(context: Any, x: Any, y: Any, z: Any, *, value: Any = 1) -> Any:
        """``x + value y z``."""
        return sum_(context, x, apply(context, product, operator.mul, y, z), alpha=value)

    @rule("addcdiv")
    def addcdiv(context: Any, x: Any, y: Any, z: Any, *, value: Any = 1) -> Any:
        """``x + value y / z``."""
        return sum_(context, x, apply(context, quotient, operator.truediv, y, z), alpha=value)


def register_filled(rule: Callable[..., Callable[[Rule], Rule]]) -> None:
    """Make rules for tensors that take nothing but shape and dtype from a value that depends on the input."""

    def register(name: str) -> None:
        @rule(name)
        def filled(context: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            blank = torch.zeros(x.index.shape, dtype=context.dtype)
            blank = blank.double() if blank.is_floating_point() else blank
            return known(getattr(torch.ops.aten, name)(blank, *args, **kwargs), name)

    for each in _FILLED.split():
        register(each)
