"""Rules for operators that only move data, or only read a shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.extraction.constants import known
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.value import SampleMixing, Value

_MOVES = (
    "alias atleast_1d atleast_2d atleast_3d broadcast_to channel_shuffle chunk clone contiguous detach diagonal expand "
    "expand_as flatten flip fliplr flipud gather index index_select lift_fresh_copy mT moveaxis movedim narrow numpy_T "
    "permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape reshape_as roll rot90 select slice "
    "split split_with_sizes squeeze swapaxes swapdims t take_along_dim tensor_split tile transpose unbind unflatten "
    "unfold unsqueeze view view_as _unsafe_view positive"
)
_FILLED = "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty fill zero"


def carry_out(context: Context, operator: str, args: Any, kwargs: Any) -> Any:
    """Run the operator itself on the integers that say which entry lies where."""
    values = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Value)]
    node, indices = context.builder.joined(values)
    encoded = {id(value): index for value, index in zip(values, indices, strict=True)}
    args, kwargs = tree_map(lambda each: encoded.get(id(each), each), (args, kwargs))
    result = getattr(torch.ops.aten, operator)(*args, **kwargs)
    size, batch = context.builder.nodes[node].size, context.builder.batch
    return tree_map(lambda index: Value(node, size, index, batch), result)


def _register(operator: str) -> None:
    @rule(operator)
    def move(context: Context, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("memory_format", None)
        for dtype in (each for each in args if isinstance(each, torch.dtype)):
            context.refuse_conversion(dtype)  # the bits are read as another type
        if operator in ("view", "_unsafe_view"):
            # never moves an entry, however the integers are laid out
            return carry_out(context, "reshape", args, kwargs)
        return carry_out(context, operator, args, kwargs)


for _operator in _MOVES.split():
    _register(_operator)


def lifted(context: Context, constant: Any, like: Value) -> Value:
    """A known tensor as a value, its samples counted where those of another value are: no entry of the input, and a
    bias.

    Raises:
        SampleMixing: it is not the same for every sample.
    """
    axis = like.batch_axis()
    values = context.constant(constant).movedim(axis, 0)
    if len(values) != context.builder.batch or torch.any(values != values[:1]):
        raise SampleMixing
    entries, bias = np.full(values[0].numel(), -1), values[0].reshape(-1).numpy()
    made = context.builder.whole(context.builder.selected(like, entries, bias), values.shape[1:])
    return made.moved(made.index.movedim(0, axis))


@rule("cat", "concat", "concatenate")
def cat(context: Context, tensors: list[Any], dim: int = 0) -> Any:
    """Traced and known tensors one after the other."""
    return carry_out(context, "cat", (all_values(context, tensors), dim), {})


@rule("broadcast_tensors")
def broadcast_tensors(context: Context, tensors: list[Any]) -> list[Any]:
    """Each expanded to the shape of all; known ones stay known."""
    shapes = [(x.index if isinstance(x, Value) else x).shape for x in tensors]
    shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return [carry_out(context, "expand", (x, shape), {}) if isinstance(x, Value) else x.expand(shape) for x in tensors]


@rule("stack")
def stack(context: Context, tensors: list[Any], dim: int = 0) -> Any:
    """Traced and known tensors along a new dimension."""
    return carry_out(context, "stack", (all_values(context, tensors), dim), {})


def all_values(context: Context, tensors: Sequence[Any]) -> list[Value]:
    """Traced tensors as they are, known ones lifted beside them."""
    like = next(each for each in tensors if isinstance(each, Value))
    return [each if isinstance(each, Value) else lifted(context, each, like) for each in tensors]


@rule("copy")
def copy(context: Context, x: Any, source: Any, non_blocking: bool = False) -> Any:
    """What is written over a tensor, in that tensor's shape."""
    shape = x.index.shape if isinstance(x, Value) else x.shape
    return source.moved(source.index.expand(shape)) if isinstance(source, Value) else source.expand(shape)


@rule("constant_pad_nd")
def constant_pad_nd(context: Context, x: Value, pad: list[int], value: float = 0.0) -> Value:
    """A known number around a traced tensor."""
    sides = [(0, 0)] * x.index.ndim
    sides[x.index.ndim - len(pad) // 2 :] = [(pad[k], pad[k + 1]) for k in range(len(pad) - 2, -2, -2)]
    if sides[0] == (0, 0):
        return _padded(context, x, sides, value)
    axis = x.batch_axis()
    if sides[axis] != (0, 0):
        raise SampleMixing
    sides.insert(0, sides.pop(axis))
    made = _padded(context, x.moved(x.index.movedim(axis, 0)), sides, value)
    return made.moved(made.index.movedim(0, axis))


def _padded(context: Context, x: Value, sides: list[tuple[int, int]], value: float) -> Value:
    """With a first dimension that is not padded."""
    layout = x.rows()
    entries = torch.from_numpy(layout.entries).reshape(-1, *x.shape[1:])
    padded = torch.ops.aten.constant_pad_nd(entries, [side for pair in reversed(sides[1:]) for side in pair], -1)
    bias = torch.where(padded < 0, context.constant(value), 0.0).reshape(-1).numpy()
    return layout.place(context.builder.selected(x, padded.numpy(), bias), *padded.shape[1:])


@rule("pad")
def pad(context: Context, x: Value, pad: list[int], mode: str = "constant", value: float | None = None) -> Value:
    """Known numbers, or a copy of the tensor's own entries, around a traced tensor."""
    if mode == "constant":
        return constant_pad_nd(context, x, pad, value or 0.0)
    moved = torch.ops.aten.pad(x.index.double(), pad, mode)  # reflection exists for floating-point tensors only
    note = (x, tuple(pad)) if mode == "circular" else None
    return Value(x.node, x.size, moved.long(), x.batch, note)


@rule("where")
def where(context: Context, condition: Any, x: Any, y: Any) -> Value:
    """A choice by a known mask."""
    if isinstance(condition, Value):
        raise context.unsupported("not yet", "By itself a choice that depends on the input jumps where it changes.")
    condition = condition.bool()
    if isinstance(x, Value) and isinstance(y, Value):
        return cast(Value, carry_out(context, "where", (condition, x, y), {}))
    return _kept(context, condition, x, y) if isinstance(x, Value) else _kept(context, ~condition, y, x)


def _kept(context: Context, mask: torch.Tensor, value: Value, known: Any) -> Value:
    """The value where the mask says so, a known number elsewhere."""
    shapes = value.index.shape, mask.shape, torch.as_tensor(known).shape
    shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    layout = value.moved(value.index.expand(shape)).layout()
    keep = layout.per_sample(mask.expand(shape).double()) > 0
    other = layout.per_sample(context.constant(known).expand(shape))
    entries = np.where(keep, layout.entries[:, 0], -1)
    return layout.place(context.builder.selected(value, entries, np.where(keep, 0.0, other)))


@rule("masked_fill")
def masked_fill(context: Context, x: Value, mask: Any, value: Any) -> Value:
    """A known number where a known mask says so."""
    return where(context, mask, value, x)


@rule("index_fill")
def index_fill(context: Context, x: Value, dim: int, index: torch.Tensor, value: Any) -> Value:
    """A known number at known positions of a dimension."""
    blank = torch.zeros(x.index.shape, dtype=torch.bool)
    return masked_fill(context, x, blank.index_fill(dim, index, True), value)


@rule("_to_copy", "to", "type_as", "_conj", "resolve_conj", "resolve_neg", "lift", "lift_fresh", "real")
def change_type(context: Context, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A change of dtype or device; the walk refuses one that rounds."""
    return x


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(context: Context, x: Value, p: float, train: bool) -> Value:
    """Nothing in evaluation mode."""
    if train:
        advice = "Use nn.Dropout, which follows the training flag, or pass training=self.training."
        raise context.unsupported("replace", advice)
    return x


@rule("getitem")
def getitem(context: Context, values: Any, item: int) -> Any:
    """One of an operator's several results; those without a rule are the positions of what was found."""
    if values[item] is None:
        raise context.unsupported("never", "Positions of a maximum or of sorted entries jump; their values do not.")
    return values[item]


@rule("sym_size")
def sym_size(context: Context, x: Value, dim: int) -> int:
    """A length; the number of samples where it counts them."""
    return x.index.shape[dim]


@rule("sym_numel")
def sym_numel(context: Context, x: Value) -> int:
    """The number of entries, of all samples."""
    return x.index.numel()


def _register_filled(operator: str) -> None:
    @rule(operator)
    def filled(context: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
        """A known tensor that takes nothing but shape and dtype from the value."""
        blank = torch.zeros(x.shape, dtype=context.dtype)
        blank = blank.double() if blank.is_floating_point() else blank
        return known(getattr(torch.ops.aten, operator)(blank, *args, **kwargs), operator)


for _operator in _FILLED.split():
    _register_filled(_operator)


@rule("item", "_local_scalar_dense")
def item(context: Context, x: Value) -> None:
    """A Python number from a tensor: the graph cannot follow it."""
    raise context.refused("A Python number is made from values of the input.", "Compute with tensors only.")
