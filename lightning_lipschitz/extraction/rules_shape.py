"""Rules for operators that only move data, or only read a shape."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.extraction.expression import Expression, concatenate
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules_composite import register_filled
from lightning_lipschitz.extraction.samples import SampleMixing, broadcast
from lightning_lipschitz.extraction.traced import Traced

_MOVES = (
    "alias atleast_1d atleast_2d atleast_3d broadcast_to channel_shuffle chunk clone contiguous detach diagonal expand "
    "expand_as flatten flip fliplr flipud gather index index_select lift_fresh_copy mT moveaxis movedim narrow numpy_T "
    "permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape reshape_as roll rot90 select slice "
    "split split_with_sizes squeeze swapaxes swapdims t take_along_dim tensor_split tile transpose unbind unflatten "
    "unfold unsqueeze view view_as _unsafe_view"
)


_DROPOUT = "dropout feature_dropout alpha_dropout feature_alpha_dropout"


def _carry_out(context: Context, operator: str, args: Any, kwargs: Any) -> Any:
    """Run the operator itself on the integers that say which entry lies where."""
    traced = {id(x.expression): x.expression for x in tree_leaves((args, kwargs)) if isinstance(x, Traced)}
    whole = concatenate(list(traced.values()))
    offsets, end = {}, 0
    for key, expression in traced.items():
        offsets[key], end = end, end + expression.size

    def encode(value: Any) -> Any:
        if not isinstance(value, Traced):
            return value
        sample, entry = value.index // value.expression.size, value.index % value.expression.size
        return sample * whole.size + entry + offsets[id(value.expression)]

    args, kwargs = tree_map(encode, (args, kwargs))
    result = getattr(torch.ops.aten, operator)(*args, **kwargs)
    return tree_map(lambda index: Traced(whole, index, context.batch), result)


def _register(operator: str) -> None:
    @rule(operator)
    def move(context: Context, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("memory_format", None)
        for dtype in (each for each in args if isinstance(each, torch.dtype)):
            context.refuse_conversion(dtype)  # the bits are read as another type
        if operator in ("view", "_unsafe_view"):
            return _carry_out(
                context, "reshape", args, kwargs
            )  # never moves an entry, however the integers are laid out
        return _carry_out(context, operator, args, kwargs)


for _operator in _MOVES.split():
    _register(_operator)


def _known(values: torch.Tensor, axis: int, batch: int) -> Traced:
    """A known tensor as a traced one: the same entries for every sample."""
    values = values.movedim(axis, 0)
    if len(values) != batch or torch.any(values != values[:1]):
        raise SampleMixing
    lifted = Traced.of_shape(Expression({}, values[0].reshape(-1).numpy()), batch, values.shape[1:])
    return Traced(lifted.expression, lifted.index.movedim(0, axis), batch)


def _lifted(context: Context, constant: torch.Tensor, like: Traced) -> Traced:
    return _known(context.constant(constant), like.batch_axis(), context.batch)


def _all_traced(context: Context, *values: Any) -> list[Traced]:
    like = next(value for value in values if isinstance(value, Traced))
    return [value if isinstance(value, Traced) else _lifted(context, value, like) for value in values]


@rule("cat", "concat", "concatenate")
def cat(context: Context, tensors: list[Any], dim: int = 0) -> Any:
    """Traced and known tensors one after the other."""
    return _carry_out(context, "cat", (_all_traced(context, *tensors), dim), {})


@rule("broadcast_tensors")
def broadcast_tensors(context: Context, tensors: list[Any]) -> list[Any]:
    """Each expanded to the shape of all; known ones stay known."""
    shapes = [(x.index if isinstance(x, Traced) else x).shape for x in tensors]
    shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return [
        _carry_out(context, "expand", (x, shape), {}) if isinstance(x, Traced) else x.expand(shape) for x in tensors
    ]


@rule("stack")
def stack(context: Context, tensors: list[Any], dim: int = 0) -> Any:
    """Traced and known tensors along a new dimension."""
    return _carry_out(context, "stack", (_all_traced(context, *tensors), dim), {})


def _register_scatter(operator: str) -> None:
    scatter = getattr(torch.ops.aten, operator)

    @rule(operator)
    def write(context: Context, x: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(source, Traced):
            return _carry_out(context, operator, (*_all_traced(context, x, source), *args), kwargs)
        blank = torch.zeros(x.index.shape, dtype=torch.float64)
        written = scatter(blank, context.constant(source), *args, **kwargs)
        mask = scatter(blank, torch.ones(source.shape, dtype=torch.float64), *args, **kwargs).bool()
        return _choose(context, mask, _lifted(context, written, x), x)


for _operator in ("select_scatter", "slice_scatter", "diagonal_scatter"):
    _register_scatter(_operator)


def _choose(context: Context, mask: torch.Tensor, yes: Traced, no: Traced) -> Traced:
    """``where`` with a known mask."""
    return cast(Traced, _carry_out(context, "where", (mask, yes, no), {}))


@rule("constant_pad_nd")
def constant_pad_nd(context: Context, x: Traced, pad: list[int], value: float = 0.0) -> Traced:
    """Known numbers around a traced tensor."""
    inside = torch.ops.aten.constant_pad_nd(torch.ones(x.index.shape, dtype=torch.bool), pad, False)
    padded = Traced(x.expression, torch.ops.aten.constant_pad_nd(x.index, pad, 0), context.batch)
    # Outside, `padded` holds entry 0 of sample 0 until it is chosen away: only `x` can tell the batch dimension.
    border = _known(context.constant(value).expand(inside.shape), x.batch_axis(), context.batch)
    return _choose(context, inside, padded, border)


@rule("pad")
def pad(context: Context, x: Traced, pad: list[int], mode: str = "constant", value: float | None = None) -> Traced:
    """Known numbers, or a copy of the tensor's own entries, around a traced tensor."""
    if mode == "constant":
        return constant_pad_nd(context, x, pad, value or 0.0)
    moved = torch.ops.aten.pad(x.index.double(), pad, mode)  # reflection exists for floating-point tensors only
    return Traced(x.expression, moved.long(), context.batch)


@rule("copy")
def copy(context: Context, x: Any, source: Any, non_blocking: bool = False) -> Any:
    """What is written over a tensor, in that tensor's shape."""
    return _spread(context, source, x.index.shape if isinstance(x, Traced) else x.shape)


@rule("where")
def where(context: Context, condition: Any, x: Any, y: Any) -> Traced:
    """A choice by a known mask."""
    if isinstance(condition, Traced):
        raise context.unsupported("not yet", "By itself a choice that depends on the input jumps where it changes.")
    given = (each.index if isinstance(each, Traced) else torch.as_tensor(each) for each in (condition, x, y))
    shape = broadcast(*given)[0].shape
    spread = [_spread(context, each, shape) for each in (x, y)]
    return _choose(context, torch.broadcast_to(condition, shape), *_all_traced(context, *spread))


def _spread(context: Context, value: Any, shape: torch.Size) -> Any:
    if isinstance(value, Traced):
        return Traced(value.expression, value.index.expand(shape), value.batch)
    return context.constant(value).expand(shape)


@rule("masked_fill")
def masked_fill(context: Context, x: Traced, mask: Any, value: Any) -> Traced:
    """A known number where a known mask says so."""
    return where(context, mask, value, x)


@rule("index_fill")
def index_fill(context: Context, x: Traced, dim: int, index: torch.Tensor, value: Any) -> Traced:
    """A known number at known positions of a dimension."""
    blank = torch.zeros(x.index.shape, dtype=torch.bool)
    return masked_fill(context, x, blank.index_fill(dim, index, True), value)


@rule("_to_copy", "to", "type_as", "_conj", "resolve_conj", "resolve_neg", "lift", "lift_fresh", "real")
def change_type(context: Context, x: Traced, *args: Any, **kwargs: Any) -> Traced:
    """A change of dtype or device; the walk refuses one that rounds."""
    return x


@rule(*_DROPOUT.split())
def dropout(context: Context, x: Traced, p: float, train: bool) -> Traced:
    """Nothing in evaluation mode."""
    if train:
        raise context.unsupported(
            "replace", "Use nn.Dropout, which follows the training flag, or pass training=self.training."
        )
    return x


@rule("getitem")
def getitem(context: Context, values: Any, item: int) -> Any:
    """One of an operator's several results; those without a rule are the positions of what was found."""
    if values[item] is None:
        raise context.unsupported("never", "Positions of a maximum or of sorted entries jump; their values do not.")
    return values[item]


@rule("sym_size")
def sym_size(context: Context, x: Traced, dim: int) -> int:
    """A length; the number of samples where it counts them."""
    return x.index.shape[dim]


@rule("sym_numel")
def sym_numel(context: Context, x: Traced) -> int:
    """The number of entries, of all samples."""
    return x.index.numel()


register_filled(rule)


@rule("item", "_local_scalar_dense")
def item(context: Context, x: Traced) -> None:
    """A Python number from a tensor: the graph cannot follow it."""
    raise context.refused("A Python number is made from values of the input.", "Compute with tensors only.")
