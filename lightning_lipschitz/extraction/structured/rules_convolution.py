"""Convolutions, forwards and transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.extraction.images import require_batch
from lightning_lipschitz.extraction.structured.registry import PRODUCT, Context, rule
from lightning_lipschitz.extraction.structured.value import Value
from lightning_lipschitz.structured import Convolution

Pairs = tuple[tuple[int, int], ...]


def _spread(value: Any, dims: int) -> list[int]:
    """One number for every dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> Pairs:
    """(before, after) for every dimension."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
        return tuple((each // 2, each - each // 2) for each in total)
    return tuple((each, each) for each in _spread(padding, len(kernel)))


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    context: Context,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """A convolution on zero padding; on circular padding, if that is what came before it."""
    if isinstance(weight, Value):
        raise context.unsupported("not yet", PRODUCT)
    require_batch(x.index, weight)
    kernel = context.constant(weight).numpy()
    taps = kernel.shape[2:]
    stride, dilation = _spread(stride, len(taps)), _spread(dilation, len(taps))
    pairs = _padding(padding, taps, dilation)
    circular = _circular(context, x, kernel, stride, dilation, pairs, groups)
    if circular is None:
        source, image = context.builder.ordered(x), tuple(x.index.shape[1:])
        circular = _node(context, source, kernel, image, stride, pairs, dilation, groups)
    return _added(context, circular, bias, circular.result)


def _node(
    context: Context,
    source: int,
    kernel: Any,
    image: tuple[int, ...],
    stride: Any,
    padding: Pairs,
    dilation: Any,
    groups: int,
    **kind: bool,
) -> Convolution:
    return Convolution(
        sources=(source,),
        kernel=kernel,
        image=image,
        stride=tuple(stride),
        padding=padding,
        dilation=tuple(dilation),
        groups=groups,
        name=context.name,
        **kind,
    )


def _circular(
    context: Context, x: Value, kernel: Any, stride: Any, dilation: Any, pairs: Pairs, groups: int
) -> Convolution | None:
    """The convolution on a torus that a circular padding and a convolution without padding make."""
    if x.padded is None or any(map(any, pairs)):
        return None
    inner, pad = x.padded
    around = [(pad[k], pad[k + 1]) if k < len(pad) else (0, 0) for k in range(0, 2 * (inner.index.ndim - 2), 2)]
    if len(pad) > len(around) * 2 or min(pad) < 0:
        return None
    source, image = context.builder.ordered(inner), tuple(inner.index.shape[1:])
    try:
        return _node(context, source, kernel, image, stride, tuple(reversed(around)), dilation, groups, circular=True)
    except ArgumentError:  # outputs or taps meet on the circle: the padded image is convolved instead
        return None


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(
    context: Context,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """The adjoint of the convolution with the same kernel that leads back."""
    if isinstance(weight, Value):
        raise context.unsupported("not yet", PRODUCT)
    require_batch(x.index, weight)
    kernel = context.constant(weight).numpy()
    taps, lengths = kernel.shape[2:], x.index.shape[2:]
    stride, dilation, padding, extra = (_spread(v, len(taps)) for v in (stride, dilation, padding, output_padding))
    geometry = zip(lengths, stride, padding, dilation, taps, extra, strict=True)
    image = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, s, p, d, k, e in geometry]
    shape = (kernel.shape[1] * groups, *image)
    pairs = tuple((p, p) for p in padding)
    source = context.builder.ordered(x)
    node = _node(context, source, kernel, shape, stride, pairs, dilation, groups, transposed=True)
    if node.result != tuple(x.index.shape[1:]):
        raise context.unsupported("not yet", "An output padding that is longer than the stride has no rule.")
    return _added(context, node, bias, shape)


@rule("convolution")
def any_convolution(
    context: Context,
    x: Value,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    is_transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    """The operator behind all of them."""
    if is_transposed:
        return transposed(context, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolution(context, x, weight, bias, stride, padding, dilation, groups)


def _added(context: Context, node: Convolution, bias: Any, shape: Sequence[int]) -> Value:
    """The node with its bias, one a channel."""
    offsets = None
    if bias is not None:
        offsets = np.repeat(context.constant(bias).numpy(), int(np.prod(shape[1:])))
    return context.builder.whole(context.builder.add(node, offsets), shape)
