"""Rules for convolutions, forwards and transposed.

Frames, or other parts of a sample, that were folded into the first dimension are convolved each on its own: they become
groups of channels of one convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.extraction.images import require_batch, spread
from lightning_lipschitz.extraction.registry import PRODUCT, Context, rule
from lightning_lipschitz.extraction.value import Layout, SampleMixing, Value
from lightning_lipschitz.structured import Convolution

Pairs = tuple[tuple[int, int], ...]


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> Pairs:
    """(before, after) for every dimension."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
        return tuple((each // 2, each - each // 2) for each in total)
    return tuple((each, each) for each in spread(padding, len(kernel)))


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
    stride, dilation = spread(stride, len(taps)), spread(dilation, len(taps))
    pairs = _padding(padding, taps, dilation)
    circular = _circular(context, x, kernel, stride, dilation, pairs, groups)
    if circular is not None:
        return _added(context, circular, bias, circular.result)
    source, layout = context.builder.samples(x)
    parts = len(layout.entries)
    kernel = np.tile(kernel, (parts, *[1] * (kernel.ndim - 1))) if parts > 1 else kernel
    image = (parts * x.shape[1], *x.shape[2:])
    node = _node(context, source, kernel, image, stride, pairs, dilation, parts * groups)
    return _added(context, node, bias, node.result, layout)


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
    padding, image = tuple(reversed(around)), tuple(inner.shape[1:])
    try:
        source = context.builder.ordered(inner)
        return _node(context, source, kernel, image, stride, padding, dilation, groups, circular=True)
    except (ArgumentError, SampleMixing):  # outputs or taps meet on the circle, or there are frames: it is padded
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
    taps, lengths = kernel.shape[2:], x.shape[2:]
    stride, dilation, padding, extra = (spread(v, len(taps)) for v in (stride, dilation, padding, output_padding))
    geometry = zip(lengths, stride, padding, dilation, taps, extra, strict=True)
    image = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, s, p, d, k, e in geometry]
    pairs = tuple((p, p) for p in padding)
    source, layout = context.builder.samples(x)
    parts = len(layout.entries)
    shape = (parts * groups * kernel.shape[1], *image)
    kernel = np.tile(kernel, (parts, *[1] * (kernel.ndim - 1))) if parts > 1 else kernel
    node = _node(context, source, kernel, shape, stride, pairs, dilation, parts * groups, transposed=True)
    if node.result != (parts * x.shape[1], *lengths):
        raise context.unsupported("not yet", "An output padding that is longer than the stride has no rule.")
    return _added(context, node, bias, shape, layout)


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


def _added(
    context: Context, node: Convolution, bias: Any, shape: Sequence[int], layout: Layout | None = None
) -> Value:
    """The node with its bias, one a channel, at the places of the parts that were convolved."""
    offsets = None
    if bias is not None:
        known = context.constant(bias).numpy()
        offsets = np.repeat(np.tile(known, shape[0] // len(known)), math.prod(shape[1:]))
    number = context.builder.add(node, offsets)
    if layout is None:
        return context.builder.whole(number, shape)
    channels = shape[0] // len(layout.entries)
    placed = layout.place(number, channels * math.prod(shape[1:]))
    return placed.moved(placed.index.reshape(-1, channels, *shape[1:]))
