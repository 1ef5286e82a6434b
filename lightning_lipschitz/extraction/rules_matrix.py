"""Rules for matrices along one dimension: linear layers, products with a known tensor, sums and means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from lightning_lipschitz.extraction.coefficients import Matrix
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules_arithmetic import PRODUCT, add, div, mul
from lightning_lipschitz.extraction.size import SPARSE_ENTRY, require_room
from lightning_lipschitz.extraction.traced import Traced
from lightning_lipschitz.network import Array


def apply_weight(x: Traced, weight: Matrix, bias: Array | None = None, relative: float = 0.0) -> Traced:
    """``weight @ v + bias`` for every vector v along the last dimension; entries of weight within a ``relative`` error.

    Raises:
        ModelSizeError: the matrix of all these vectors would not fit.
    """
    layout = x.layout(vector=True)
    rows = len(layout.entries)
    require_room(rows * np.size(weight) * SPARSE_ENTRY, f"a matrix of {np.shape(weight)} at {rows} places")
    every = weight if rows == 1 else sparse.kron(sparse.identity(rows), sparse.csr_array(weight), format="csr")
    expression = layout.select(x.expression).apply(every, relative)
    if bias is not None:
        expression = expression.shift(np.tile(bias, rows))
    return layout.place(expression, len(weight))


def along(x: Traced, dim: int, weight: Matrix, relative: float = 0.0) -> Traced:
    """``weight`` along any dimension."""
    result = apply_weight(replace(x, index=x.index.movedim(dim, -1)), weight, relative=relative)
    return replace(result, index=result.index.movedim(-1, dim))


@rule("linear")
def linear(context: Context, x: Any, weight: Any, bias: Any = None) -> Traced:
    """``x W' + b`` along the last dimension."""
    if isinstance(weight, Traced) or isinstance(bias, Traced):
        raise context.unsupported("not yet", PRODUCT)
    rows = context.constant(weight).numpy()
    offsets = None if bias is None else np.broadcast_to(context.constant(bias).numpy(), rows.shape[:1])
    return apply_weight(x, rows, offsets)


@rule("matmul", "mm", "mv")
def matmul(context: Context, x: Any, y: Any) -> Traced:
    """A product with a known matrix or vector, on either side."""
    if isinstance(x, Traced) and isinstance(y, Traced):
        raise context.unsupported("not yet", PRODUCT)
    known = context.constant(y if isinstance(x, Traced) else x).numpy()
    if known.ndim > 2:
        raise context.unsupported(
            "not yet", "A product with a known stack of matrices has no rule; use a single matrix."
        )
    if not isinstance(x, Traced):
        return along(y, -2, known) if known.ndim == 2 else _squeezed(along(y, -2, known[None]), -2)
    return apply_weight(x, known.T) if known.ndim == 2 else _squeezed(apply_weight(x, known[None]), -1)


def _squeezed(x: Traced, dim: int) -> Traced:
    return replace(x, index=x.index.squeeze(dim))


@rule("addmm")
def addmm(context: Context, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Any:
    """``beta bias + alpha x y``."""
    if isinstance(x, Traced) or isinstance(y, Traced):
        return add(context, mul(context, matmul(context, x, y), alpha), bias, alpha=beta)
    return add(context, context.constant(alpha) * (context.constant(x) @ context.constant(y)), bias, alpha=beta)


@rule("einsum")
def einsum(context: Context, equation: str, operands: list[Any], path: Any = None) -> Traced:
    """A contraction of one traced tensor with one known tensor, without common dimensions that stay."""
    left, _, result = equation.replace(" ", "").partition("->")
    labels = left.split(",")
    traced = [isinstance(each, Traced) for each in operands]
    if sum(traced) > 1:
        raise context.unsupported("not yet", PRODUCT)
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
    return along(x, dim, np.tril(np.ones((x.index.shape[dim],) * 2)))
