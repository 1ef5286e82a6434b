"""Rules for sums, multiples and normalisation: affine in every entry on its own, or in two entries at one place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF
from lightning_lipschitz.extraction.registry import Context, Units, rule
from lightning_lipschitz.extraction.rules_activation import activate, clamp_max, clamp_min
from lightning_lipschitz.extraction.rules_composite import register_composites
from lightning_lipschitz.extraction.samples import SampleMixing, broadcast
from lightning_lipschitz.extraction.traced import Traced, aligned

PRODUCT = "By itself the product of two values that both depend on the input grows without bound."


@rule("add", "add_")
def add(context: Context, x: Any, y: Any, alpha: float = 1) -> Traced:
    """``x + alpha y``."""
    if alpha != 1:
        y = mul(context, y, alpha) if isinstance(y, Traced) else context.constant(y) * context.constant(alpha)
    if isinstance(x, Traced) and isinstance(y, Traced):
        return _sum(x, y)
    x, y = (x, y) if isinstance(x, Traced) else (y, x)
    layout, offsets = aligned(x, context.constant(y))
    return layout.place(layout.select(x.expression).shift(offsets))


def _sum(x: Traced, y: Traced) -> Traced:
    indices = broadcast(x.index, y.index)
    one, two = (replace(each, index=index).layout() for each, index in zip((x, y), indices, strict=True))
    if not torch.equal(one.positions, two.positions):
        raise SampleMixing
    return one.place(one.select(x.expression).plus(two.select(y.expression)))


@rule("sub", "subtract")
def sub(context: Context, x: Any, y: Any, alpha: float = 1) -> Traced:
    """``x - alpha y``."""
    return add(context, x, y, alpha=-alpha)


@rule("rsub")
def rsub(context: Context, x: Any, y: Any, alpha: float = 1) -> Traced:
    """``y - alpha x``."""
    return add(context, y, x, alpha=-alpha)


@rule("mul", "multiply")
def mul(context: Context, x: Any, y: Any) -> Traced:
    """A product with a known tensor."""
    if isinstance(x, Traced) and isinstance(y, Traced):
        raise context.unsupported("not yet", PRODUCT)
    x, y = (x, y) if isinstance(x, Traced) else (y, x)
    return _scaled(x, context.constant(y))


def _scaled(x: Traced, factors: torch.Tensor, relative: float = 0.0) -> Traced:
    if factors.ndim == 0 and factors == 1 and relative == 0.0:
        return x
    layout, values = aligned(x, factors)
    return layout.place(layout.select(x.expression).scale(values, relative))


@rule("div", "divide", "true_divide")
def div(context: Context, x: Any, y: Any, rounding_mode: str | None = None) -> Traced:
    """A quotient by a known tensor."""
    if isinstance(y, Traced):
        raise context.unsupported(
            "not yet", "By itself a quotient by a value that depends on the input has an unbounded slope."
        )
    if rounding_mode is not None:
        raise context.unsupported("not yet", "By itself it jumps, and a jump is steeper than any constant.")
    divisors = context.constant(y)
    exact = bool(torch.all(torch.frexp(divisors).mantissa.abs() == 0.5))
    return _scaled(x, context.constant(1.0 / divisors), 0.0 if exact else UNIT_ROUNDOFF)


register_composites(rule, Traced, add, mul, div, lambda _, *args: _scaled(*args))


@rule("neg", "negative")
def neg(context: Context, x: Traced) -> Traced:
    """``-x``."""
    return mul(context, x, -1.0)


@rule("positive")
def positive(context: Context, x: Traced) -> Traced:
    """``x``."""
    return x


@rule("_native_batch_norm_legit_no_training")
def batch_norm_no_training(
    context: Context, x: Traced, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Traced, None, None]:
    """In evaluation mode: ``(x - mean) weight / sqrt(variance + eps) + bias`` a channel, channels in dimension 1."""
    channel = [-1, *[1] * (x.index.ndim - 2)]
    mean, variance = (context.constant(each).reshape(channel) for each in (mean, variance))
    gain = context.constant(1.0 if weight is None else weight)
    factors = context.constant(gain.reshape(channel if gain.ndim else []) / torch.sqrt(variance + eps))
    # Each of sum, square root and quotient rounds once: less than 3 u in all, to first order.
    scaled = _scaled(x, factors, 4 * UNIT_ROUNDOFF)
    offsets = -mean * factors + (0.0 if bias is None else context.constant(bias).reshape(channel))
    return add(context, scaled, offsets), None, None


@rule("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
def native_batch_norm(
    context: Context,
    x: Traced,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Any:
    """The same behind one more argument; without running statistics the samples of a batch act on each other."""
    if training or mean is None:
        raise context.unsupported(
            "replace", "Keep running statistics (track_running_stats=True), or samples act on each other."
        )
    return batch_norm_no_training(context, x, weight, bias, mean, variance, momentum, eps)


@rule("batch_norm")
def batch_norm(context: Context, x: Traced, *args: Any) -> Any:
    """The same, the result alone."""
    return native_batch_norm(context, x, *args)[0]


def _rectified(context: Context, x: Traced) -> Traced:
    layout = x.layout()
    shape = layout.entries.size
    return activate(context, layout, layout.select(x.expression), Units(np.zeros(shape), np.ones(shape), torch.relu))


@rule("maximum")
def maximum(context: Context, x: Any, y: Any) -> Traced:
    """``max(x, y) = x + relu(y - x)``."""
    if isinstance(x, Traced) and isinstance(y, Traced):
        return _sum(x, _rectified(context, sub(context, y, x)))
    x, y = (x, y) if isinstance(x, Traced) else (y, x)
    return clamp_min(context, x, y)


@rule("minimum")
def minimum(context: Context, x: Any, y: Any) -> Traced:
    """``min(x, y) = x - relu(x - y)``."""
    if isinstance(x, Traced) and isinstance(y, Traced):
        return sub(context, x, _rectified(context, sub(context, x, y)))
    x, y = (x, y) if isinstance(x, Traced) else (y, x)
    return clamp_max(context, x, y)
