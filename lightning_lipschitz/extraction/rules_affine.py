"""Rules for operators that are affine in the one argument that depends on the input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse

from lightning_lipschitz.extraction.coefficients import UNIT_ROUNDOFF, Matrix
from lightning_lipschitz.extraction.registry import Context, Units, rule
from lightning_lipschitz.extraction.rules_activation import activate, clamp_max, clamp_min
from lightning_lipschitz.extraction.traced import SampleMixing, Traced, aligned, broadcast
from lightning_lipschitz.network import Array

_PRODUCT = "The product of two values that both depend on the input grows without bound."


def apply_weight(x: Traced, weight: Matrix, bias: Array | None = None) -> Traced:
    """``weight @ v + bias`` for every vector v along the last dimension."""
    layout = x.layout(vector=True)
    rows = len(layout.entries)
    every = weight if rows == 1 else sparse.kron(sparse.identity(rows), sparse.csr_array(weight), format="csr")
    expression = layout.select(x.expression).apply(every)
    if bias is not None:
        expression = expression.shift(np.tile(bias, rows))
    return layout.place(expression, len(weight))


def _along(x: Traced, dim: int, weight: Matrix) -> Traced:
    """``weight`` along any dimension."""
    result = apply_weight(replace(x, index=x.index.movedim(dim, -1)), weight)
    return replace(result, index=result.index.movedim(-1, dim))


@rule("linear")
def linear(context: Context, x: Any, weight: Any, bias: Any = None) -> Traced:
    """``x W' + b`` along the last dimension."""
    if isinstance(weight, Traced) or isinstance(bias, Traced):
        raise context.unsupported("never" if isinstance(weight, Traced) else "not yet", _PRODUCT)
    offsets = None if bias is None else context.constant(bias).numpy()
    return apply_weight(x, context.constant(weight).numpy(), offsets)


@rule("matmul", "mm", "mv")
def matmul(context: Context, x: Any, y: Any) -> Traced:
    """A product with a known matrix or vector, on either side."""
    if isinstance(x, Traced) and isinstance(y, Traced):
        raise context.unsupported("never", _PRODUCT)
    known = context.constant(y if isinstance(x, Traced) else x).numpy()
    if known.ndim > 2:
        raise context.unsupported(
            "not yet", "A product with a known stack of matrices has no rule; use a single matrix."
        )
    if not isinstance(x, Traced):
        return _along(y, -2, known) if known.ndim == 2 else _squeezed(_along(y, -2, known[None]), -2)
    return apply_weight(x, known.T) if known.ndim == 2 else _squeezed(apply_weight(x, known[None]), -1)


def _squeezed(x: Traced, dim: int) -> Traced:
    return replace(x, index=x.index.squeeze(dim))


@rule("addmm")
def addmm(context: Context, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Any:
    """``beta bias + alpha x y``."""
    product = mul(context, matmul(context, x, y), alpha)
    return add(context, product, mul(context, bias, beta) if isinstance(bias, Traced) else bias * beta)


@rule("einsum")
def einsum(context: Context, equation: str, operands: list[Any], path: Any = None) -> Traced:
    """A contraction of one traced tensor with one known tensor, without common dimensions that stay."""
    left, _, result = equation.replace(" ", "").partition("->")
    labels = left.split(",")
    traced = [isinstance(each, Traced) for each in operands]
    if sum(traced) > 1:
        raise context.unsupported("never", _PRODUCT)
    a, b = (labels[traced.index(True)], labels[traced.index(False)]) if len(operands) == 2 else ("", "")
    inner = [label for label in b if label in a]
    unusual = not result or "." in equation or len(set(a)) < len(a) or len(set(b)) < len(b)
    if len(operands) != 2 or unusual or any(label in result for label in inner):
        raise context.unsupported("not yet", f"The equation {equation!r} has no rule; write it with matmul.")
    outer, kept = [label for label in b if label not in a], [label for label in a if label not in b]
    known = context.constant(operands[traced.index(False)]).permute([b.index(label) for label in outer + inner])
    sizes = known.shape[: len(outer)]
    x = operands[traced.index(True)]
    index = (
        x.index.permute([a.index(label) for label in kept + inner]).flatten(len(kept)) if inner else x.index[..., None]
    )
    applied = apply_weight(replace(x, index=index), known.reshape(int(np.prod(sizes)), -1).numpy())
    spread = applied.index.reshape(*applied.index.shape[:-1], *sizes)
    order = [(kept + outer).index(label) for label in result]
    summed = [number for number in range(spread.ndim) if number not in order]
    if summed:
        raise context.unsupported("not yet", f"The equation {equation!r} has no rule; write it with matmul and sum.")
    return replace(applied, index=spread.permute(order))


@rule("add", "add_")
def add(context: Context, x: Any, y: Any, alpha: float = 1) -> Traced:
    """``x + alpha y``."""
    if alpha != 1:
        y = mul(context, y, alpha) if isinstance(y, Traced) else torch.as_tensor(y) * alpha
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
        raise context.unsupported("never", _PRODUCT)
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
        raise context.unsupported("never", "A quotient by a value that depends on the input has an unbounded slope.")
    if rounding_mode is not None:
        raise context.unsupported("never", "It jumps, and a jump is steeper than any constant.")
    divisors = context.constant(y)
    exact = bool(torch.all(torch.frexp(divisors).mantissa.abs() == 0.5))
    return _scaled(x, context.constant(1.0 / divisors), 0.0 if exact else UNIT_ROUNDOFF)


@rule("neg", "negative")
def neg(context: Context, x: Traced) -> Traced:
    """``-x``."""
    return mul(context, x, -1.0)


@rule("positive")
def positive(context: Context, x: Traced) -> Traced:
    """``x``."""
    return x


@rule("sum")
def sum_(context: Context, x: Traced, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Traced:
    """A sum over dimensions of a sample."""
    every = range(x.index.ndim)
    dims = sorted(d % x.index.ndim for d in ([dim] if isinstance(dim, int) else dim or every))
    kept = [d for d in every if d not in dims]
    index = x.index.permute(*kept, *dims).flatten(len(kept))
    result = _squeezed(apply_weight(replace(x, index=index), np.ones((1, index.shape[-1]))), -1)
    shape = [1 if d in dims else length for d, length in enumerate(x.index.shape)]
    return replace(result, index=result.index.reshape(shape)) if keepdim else result


@rule("mean")
def mean(context: Context, x: Traced, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Traced:
    """A mean over dimensions of a sample."""
    total = sum_(context, x, dim, keepdim)
    return div(context, total, float(x.index.numel() // total.index.numel()))


@rule("cumsum")
def cumsum(context: Context, x: Traced, dim: int, dtype: Any = None) -> Traced:
    """Partial sums along a dimension."""
    return _along(x, dim, np.tril(np.ones((x.index.shape[dim],) * 2)))


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


@rule("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
def batch_norm(
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
    result = batch_norm_no_training(context, x, weight, bias, mean, variance, momentum, eps)
    return result[0] if context.operator in ("batch_norm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d") else result


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
