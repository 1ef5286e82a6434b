"""Rules for what is written or added at known positions: the messages of a graph network, an embedding of patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules.linear import add, mul
from lightning_lipschitz.extraction.rules.movement import all_values, carry_out, lifted
from lightning_lipschitz.extraction.value import Value

Targets = Callable[[torch.Tensor], torch.Tensor]


def _known(context: Context, *positions: Any) -> None:
    if any(isinstance(each, Value) for each in positions):
        raise context.unsupported("never", "Where it writes depends on the input, so that it jumps.")


def _added(context: Context, x: Any, source: Any, targets: Targets) -> Value:
    """``x`` with the entries of ``source`` added at their targets: as many sums as entries share one.

    Args:
        context: where it stands.
        x: what they are added to.
        source: the entries.
        targets: makes of the numbers of all positions of ``x`` those that the entries of ``source`` are added at.
    """
    x, source = all_values(context, [x, source])
    target = targets(torch.arange(x.index.numel()).reshape(x.shape))
    source = source.moved(source.index.expand(target.shape))
    nothing = lifted(context, torch.zeros(x.shape, dtype=torch.float64), x)
    node, (codes, blank) = context.builder.joined([source, nothing])
    size = context.builder.nodes[node].size
    target, order = target.reshape(-1).sort(stable=True)
    codes = codes.reshape(-1)[order]
    starts = torch.searchsorted(target, target)  # of the run of equal targets that each is in
    rank = torch.arange(len(target)) - starts
    result: Value = x
    for number in range(int(rank.max()) + 1 if len(rank) else 0):
        index = blank.reshape(-1).clone()
        index[target[rank == number]] = codes[rank == number]
        result = add(context, result, Value(node, size, index.reshape(x.shape), x.batch))
    return result


def _register_write(operator: str) -> None:
    @rule(operator)
    def write(context: Context, x: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        return carry_out(context, operator, (*all_values(context, [x, source]), *args), kwargs)


for _operator in ("select_scatter", "slice_scatter", "diagonal_scatter"):
    _register_write(_operator)


@rule("scatter_add")
def scatter_add(context: Context, x: Any, dim: int, index: Any, source: Any) -> Value:
    """``source`` added along a dimension at known positions."""
    _known(context, index)
    if isinstance(source, Value):
        source = source.moved(source.index[tuple(slice(length) for length in index.shape)])
    return _added(context, x, source, lambda every: every.gather(dim, index))


@rule("scatter_reduce")
def scatter_reduce(
    context: Context, x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True
) -> Value:
    """A sum at known positions."""
    if reduce != "sum" or not include_self:
        raise context.unsupported("not yet", 'Only reduce="sum" with include_self=True has a rule.')
    return scatter_add(context, x, dim, index, source)


@rule("index_add")
def index_add(context: Context, x: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Value:
    """``source`` added to known rows."""
    _known(context, index)
    scaled = mul(context, source, alpha) if isinstance(source, Value) else source * alpha
    return _added(context, x, scaled, lambda every: every.index_select(dim, index))


@rule("index_put")
def index_put(context: Context, x: Any, indices: list[Any], values: Any, accumulate: bool = False) -> Any:
    """Entries written, or added, at known positions."""
    _known(context, *indices)
    given = [slice(None) if each is None else each for each in indices]
    if accumulate:
        return _added(context, x, values, lambda every: every[tuple(given)])
    x, values = all_values(context, [x, values])
    return carry_out(context, "index_put", (x, indices, values), {})


@rule("scatter")
def scatter(context: Context, x: Any, dim: int, index: Any, source: Any) -> Any:
    """Entries of a tensor written along a dimension at known positions."""
    _known(context, index)
    if not isinstance(source, (Value, torch.Tensor)):
        source = torch.full(index.shape, source, dtype=torch.float64)
    x, source = all_values(context, [x, source])
    return carry_out(context, "scatter", (x, dim, index, source), {})


@rule("index_copy")
def index_copy(context: Context, x: Any, dim: int, index: Any, source: Any) -> Any:
    """Known rows written over."""
    _known(context, index)
    x, source = all_values(context, [x, source])
    return carry_out(context, "index_copy", (x, dim, index, source), {})
