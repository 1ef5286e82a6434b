"""Functions of a whole vector of constant 1, as blocks of which only the norm is bounded.

Every vector of a sample has its own result, so what holds for one holds for all together. That the constants are 1 is
shown in ``extraction.rules_group``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_lipschitz.extraction.samples import SampleMixing
from lightning_lipschitz.extraction.structured.registry import Context, find_rule, rule
from lightning_lipschitz.extraction.structured.rules_bounded import bounded
from lightning_lipschitz.extraction.structured.value import Value

Reduction = Callable[..., torch.Tensor]


def _axes(x: Value, dim: Any) -> list[int]:
    """The dimensions ``dim`` (None or none: every one), which may not be that of the batch."""
    every = range(x.index.ndim)
    given = [dim] if isinstance(dim, int) else list(every) if dim is None or not dim else list(dim)
    axes = sorted(each % x.index.ndim for each in given)
    if axes[0] == 0:
        raise SampleMixing
    return axes


def _reduced(context: Context, x: Value, dim: Any, keepdim: bool, function: Reduction) -> Value:
    axes = _axes(x, dim)
    lengths = [
        1 if axis in axes else length for axis, length in enumerate(x.index.shape) if keepdim or axis not in axes
    ]
    return bounded(context, x, lengths[1:], 1.0, lambda y: function(y, axes, keepdim))


@rule("amax")
def amax(context: Context, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """The largest entry."""
    return _reduced(context, x, dim, keepdim, torch.amax)


@rule("amin")
def amin(context: Context, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """The smallest entry."""
    return _reduced(context, x, dim, keepdim, torch.amin)


def _register_extremum(operator: str, of_two: str, of_entries: Callable[..., Value]) -> None:
    @rule(operator)
    def extremum(context: Context, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """Of two tensors; of all entries; or along a dimension, the values (the positions jump and have no rule)."""
        if isinstance(dim, (Value, torch.Tensor)):
            pairwise = find_rule(of_two)
            return pairwise(context, x, dim) if pairwise else None
        return of_entries(context, x) if dim is None else (of_entries(context, x, dim, keepdim), None)


_register_extremum("max", "maximum", amax)
_register_extremum("min", "minimum", amin)


@rule("logsumexp")
def logsumexp(context: Context, x: Value, dim: Any, keepdim: bool = False) -> Value:
    """Its gradient has an l1 norm of 1."""
    return _reduced(context, x, dim, keepdim, torch.logsumexp)


@rule("linalg_vector_norm", "norm")
def vector_norm(
    context: Context, x: Value, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    """The l2 norm, by the triangle inequality."""
    if ord != 2:
        raise context.unsupported("not yet", "Only the l2 norm has a rule.")
    return _reduced(context, x, dim, keepdim, lambda y, axes, keep: torch.linalg.vector_norm(y, 2, axes, keep))


@rule("sort")
def sort(
    context: Context, x: Value, dim: int = -1, descending: bool = False, stable: bool = False
) -> tuple[Value, None]:
    """The values."""
    (axis,) = _axes(x, dim)
    run = lambda y: y.sort(axis, descending=descending).values  # noqa: E731
    return bounded(context, x, x.index.shape[1:], 1.0, run), None


@rule("topk")
def topk(
    context: Context, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, None]:
    """The first entries of the sorted vector."""
    if not sorted:
        raise context.unsupported("replace", "Without an order its values change places in jumps: use sorted=True.")
    values = sort(context, x, dim, descending=largest)[0]
    return values.moved(values.index.narrow(dim, 0, k)), None


@rule("linalg_norm")
def norm(
    context: Context, x: Value, ord: Any = None, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    """The l2 norm of vectors, the Frobenius norm of matrices."""
    if ord is not None and not isinstance(dim, int) and len(dim or ()) != 1:
        raise context.unsupported("not yet", "Of a matrix, only the Frobenius norm has a rule: leave `ord` out.")
    return vector_norm(context, x, 2 if ord is None else ord, dim, keepdim)
