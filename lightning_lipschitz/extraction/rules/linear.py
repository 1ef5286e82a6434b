"""Rules for sums, multiples, normalisation by known statistics, and matrices along one dimension."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF, frobenius, product_up
from lightning_lipschitz.extraction.refusals import PRODUCT
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules.bounded import product, reciprocal
from lightning_lipschitz.extraction.value import Value, broadcast
from lightning_lipschitz.graph import Along, Scaling, Sum
from lightning_lipschitz.graph.arrays import Array


@rule("add", "add_")
def add(context: Context, x: Any, y: Any, alpha: float = 1) -> Value:
    """``x + alpha y``."""
    if alpha != 1:
        y = mul(context, y, alpha) if isinstance(y, Value) else context.constant(y) * context.constant(alpha)
    if isinstance(x, Value) and isinstance(y, Value):
        sources, layout = context.builder.pair(x, y)
        return layout.place(context.builder.add(Sum(sources=sources, size=layout.entries.size)))
    value: Value = x if isinstance(x, Value) else y
    known = context.constant(y if isinstance(x, Value) else x)
    if not torch.any(known) and known.numel() == 1:
        return value
    index, known = broadcast(value.index, known)
    layout = value.moved(index).layout()
    return layout.place(context.builder.selected(value, layout.entries, layout.per_sample(known)))


@rule("sub", "subtract")
def sub(context: Context, x: Any, y: Any, alpha: float = 1) -> Value:
    """``x - alpha y``."""
    return add(context, x, y, alpha=-alpha)


@rule("rsub")
def rsub(context: Context, x: Any, y: Any, alpha: float = 1) -> Value:
    """``y - alpha x``."""
    return add(context, y, x, alpha=-alpha)


@rule("mul", "multiply")
def mul(context: Context, x: Any, y: Any) -> Value:
    """A product with a known tensor, or of two values that stay in known intervals."""
    if isinstance(x, Value) and isinstance(y, Value):
        return product(context, x, y)
    x, y = (x, y) if isinstance(x, Value) else (y, x)
    return scaled(context, x, context.constant(y))


def scaled(
    context: Context, x: Value, factors: torch.Tensor, relative: float = 0.0, shift: torch.Tensor | None = None
) -> Value:
    """``factors x + shift`` entry by entry; the factors are exact to a ``relative`` error."""
    if factors.numel() == 1 and shift is None:
        if float(factors) == 1.0 and relative == 0.0:
            return x.moved(broadcast(x.index, factors)[0])
        x = context.builder.compact(x)
        everywhere = np.full(x.size, float(factors))
        node = Scaling(sources=(x.node,), factors=everywhere, relative=relative, name=context.name)
        made = Value(context.builder.add(node), x.size, x.index, x.batch)
        return made.moved(broadcast(x.index, factors)[0])
    index, factors = broadcast(x.index, factors)
    number, layout = context.builder.laid(x.moved(index))
    offsets = None if shift is None else layout.per_sample(shift.expand(index.shape))
    values = layout.per_sample(factors)
    node = Scaling(sources=(number,), factors=values, relative=relative, name=context.name)
    return layout.place(context.builder.add(node, offsets))


@rule("div", "divide", "true_divide")
def div(context: Context, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    """A quotient by a known tensor, or by a value that stays away from zero."""
    if rounding_mode is not None:
        raise context.unsupported("not yet", "By itself it jumps, and a jump is steeper than any constant.")
    if isinstance(y, Value):
        return mul(context, x, reciprocal(context, y))
    divisors = context.constant(y)
    exact = bool(torch.all(torch.frexp(divisors).mantissa.abs() == 0.5))
    return scaled(context, x, context.constant(1.0 / divisors), 0.0 if exact else UNIT_ROUNDOFF)


def _apply(context: Context, of_values: Callable[..., Any], of_numbers: Callable[..., Any], x: Any, y: Any) -> Any:
    if isinstance(x, Value) or isinstance(y, Value):
        return of_values(context, x, y)
    return of_numbers(context.constant(x), context.constant(y))


@rule("lerp")
def lerp(context: Context, x: Any, y: Any, weight: Any) -> Any:
    """``x + weight (y - x)``; with a known weight ``(1 - weight) x + weight y``, which reads x once."""
    if isinstance(x, Value) and not isinstance(weight, Value):
        kept = scaled(context, x, 1.0 - context.constant(weight), UNIT_ROUNDOFF)
        return add(context, kept, _apply(context, mul, operator.mul, y, weight))
    way = _apply(context, sub, operator.sub, y, x)
    return add(context, x, _apply(context, mul, operator.mul, way, weight))


@rule("addcmul")
def addcmul(context: Context, x: Any, y: Any, z: Any, *, value: Any = 1) -> Any:
    """``x + value y z``."""
    return add(context, x, _apply(context, mul, operator.mul, y, z), alpha=value)


@rule("addcdiv")
def addcdiv(context: Context, x: Any, y: Any, z: Any, *, value: Any = 1) -> Any:
    """``x + value y / z``."""
    return add(context, x, _apply(context, div, operator.truediv, y, z), alpha=value)


@rule("neg", "negative")
def neg(context: Context, x: Value) -> Value:
    """``-x``."""
    return mul(context, x, -1.0)


@rule("_native_batch_norm_legit_no_training")
def batch_norm_no_training(
    context: Context, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Value, None, None]:
    """In evaluation mode: ``(x - mean) weight / sqrt(variance + eps) + bias`` a channel, channels in dimension 1."""
    channel = [-1, *[1] * (x.index.ndim - 2)]
    mean, variance = (context.constant(each) for each in (mean, variance))
    gain = context.constant(1.0 if weight is None else weight)
    factors = context.constant(gain / torch.sqrt(variance + eps))
    shift = -mean * factors + (0.0 if bias is None else context.constant(bias))
    # Each of sum, square root and quotient rounds once: less than 3 u in all, to first order.
    result = scaled(context, x, factors.reshape(channel), 4 * UNIT_ROUNDOFF, shift.reshape(channel))
    return result, None, None


@rule("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
def native_batch_norm(
    context: Context,
    x: Value,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> tuple[Value, None, None]:
    """In either mode; without running statistics the samples of a batch act on each other."""
    if training or mean is None:
        advice = "Keep running statistics (track_running_stats=True), or samples act on each other."
        raise context.unsupported("replace", advice)
    return batch_norm_no_training(context, x, weight, bias, mean, variance, momentum, eps)


@rule("batch_norm")
def batch_norm(context: Context, x: Value, *args: Any) -> Value:
    """The normalised values alone, without the statistics."""
    return native_batch_norm(context, x, *args)[0]


def apply_weight(context: Context, x: Value, weight: Array, bias: Array | None = None, rounding: float = 0.0) -> Value:
    """``weight @ v + bias`` for every vector v along the last dimension."""
    number, layout = context.builder.laid(x, vector=True)
    rows = len(layout.entries)
    node = Along(sources=(number,), matrix=weight, before=rows, rounding=rounding, name=context.name)
    return layout.place(context.builder.add(node, None if bias is None else np.tile(bias, rows)), len(weight))


def along_axes(context: Context, x: Value, matrices: Sequence[Array], relative: float) -> Value:
    """One matrix for every dimension after the first two, whose entries are exact to a relative error."""
    number, layout = context.builder.samples(x)
    shape = [len(layout.entries), *x.shape[1:]]
    for axis, matrix in enumerate(matrices, start=2):
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        rounding = product_up(relative, frobenius(matrix))
        node = Along(sources=(number,), matrix=matrix, before=before, after=after, rounding=rounding, name=context.name)
        number, shape[axis] = context.builder.add(node), len(matrix)
    return layout.place(number, *shape[1:])


@rule("linear")
def linear(context: Context, x: Any, weight: Any, bias: Any = None) -> Value:
    """``x W' + b`` along the last dimension."""
    if isinstance(weight, Value) or isinstance(bias, Value):
        raise context.unsupported("bounded inputs", PRODUCT)
    rows = context.constant(weight).numpy()
    offsets = None if bias is None else np.broadcast_to(context.constant(bias).numpy(), rows.shape[:1])
    return apply_weight(context, x, rows, offsets)


@rule("matmul", "mm", "mv")
def matmul(context: Context, x: Any, y: Any) -> Value:
    """A product with a known matrix or vector, on either side."""
    if isinstance(x, Value) and isinstance(y, Value):
        raise context.unsupported("bounded inputs", PRODUCT)
    known = context.constant(y if isinstance(x, Value) else x).numpy()
    if known.ndim > 2:
        advice = "A product with a known stack of matrices has no rule; use a single matrix."
        raise context.unsupported("not yet", advice)
    rows = known[None] if known.ndim == 1 else known
    if isinstance(x, Value):
        result = apply_weight(context, x, rows if known.ndim == 1 else known.T)
        return result.moved(result.index.squeeze(-1)) if known.ndim == 1 else result
    result = apply_weight(context, y.moved(y.index.movedim(-2, -1)), rows)
    return result.moved(result.index.squeeze(-1) if known.ndim == 1 else result.index.movedim(-1, -2))


@rule("addmm")
def addmm(context: Context, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Value:
    """``beta bias + alpha x y``."""
    if isinstance(x, Value) or isinstance(y, Value):
        return add(context, mul(context, matmul(context, x, y), alpha), bias, alpha=beta)
    return add(context, context.constant(alpha) * (context.constant(x) @ context.constant(y)), bias, alpha=beta)


@rule("sum")
def sum_(context: Context, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """A sum over dimensions of a sample."""
    return reduced(x, dim, keepdim, lambda vectors: _weighted(context, vectors, mean=False))


@rule("mean")
def mean(context: Context, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """A mean over dimensions of a sample."""
    return reduced(x, dim, keepdim, lambda vectors: _weighted(context, vectors, mean=True))


def reduced(x: Value, dim: Any, keepdim: bool, function: Callable[[Value], Value]) -> Value:
    """A function from vectors along the last dimension to numbers, over other dimensions.

    Args:
        x: what it is applied to.
        dim: the dimensions; None, or none, for all.
        keepdim: whether they stay, with the length one.
        function: of the value whose last dimension is all of them.
    """
    every = range(x.index.ndim)
    dims = sorted(d % x.index.ndim for d in ([dim] if isinstance(dim, int) else dim or every))
    kept = [d for d in every if d not in dims]
    result = function(x.moved(x.index.permute(*kept, *dims).flatten(len(kept))))
    shape = [1 if d in dims else length for d, length in enumerate(x.shape)]
    return result.moved(result.index.reshape(shape)) if keepdim else result


def _weighted(context: Context, x: Value, mean: bool) -> Value:
    """The sum, or the mean, of every vector along the last dimension."""
    width = x.shape[-1]
    row, rounding = np.full((1, width), 1.0 / width if mean else 1.0), UNIT_ROUNDOFF / math.sqrt(width) if mean else 0.0
    result = apply_weight(context, x, row, rounding=rounding)
    return result.moved(result.index.squeeze(-1))


@rule("cumsum")
def cumsum(context: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    """Partial sums along a dimension."""
    result = apply_weight(context, x.moved(x.index.movedim(dim, -1)), np.tril(np.ones((x.index.shape[dim],) * 2)))
    return result.moved(result.index.movedim(-1, dim))


@rule("einsum")
def einsum(context: Context, equation: str, operands: list[Any], path: Any = None) -> Value:
    """A contraction of one traced tensor with one known tensor, without common dimensions that stay."""
    left, _, result = equation.replace(" ", "").partition("->")
    labels = left.split(",")
    traced = [isinstance(each, Value) for each in operands]
    if sum(traced) > 1:
        raise context.unsupported("bounded inputs", PRODUCT)
    a, b = (labels[traced.index(True)], labels[traced.index(False)]) if len(operands) == 2 else ("", "")
    inner, outer = [each for each in b if each in a], [each for each in b if each not in a]
    kept = [each for each in a if each not in b]
    usual = len(operands) == 2 and "." not in equation and len(set(a)) == len(a) and len(set(b)) == len(b)
    if not usual or sorted(result) != sorted(kept + outer):
        raise context.unsupported("not yet", f"The equation {equation!r} has no rule; write it with matmul and sum.")
    x, known = operands[traced.index(True)], context.constant(operands[traced.index(False)])
    known = known.permute([b.index(each) for each in outer + inner])
    index = x.index.permute([a.index(each) for each in kept + inner])
    index = index.flatten(len(kept)) if inner else index[..., None]
    applied = apply_weight(context, x.moved(index), known.reshape(math.prod(known.shape[: len(outer)]), -1).numpy())
    spread = applied.index.reshape(*applied.shape[:-1], *known.shape[: len(outer)])
    return applied.moved(spread.permute([(kept + outer).index(each) for each in result]))
