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
from lightning_lipschitz.extraction.refusals import PRODUCT
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.value import Layout, SampleMixing, Value
from lightning_lipschitz.graph import Convolution

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
    return any_convolution(context, x, weight, bias, stride, padding, dilation, False, 0, groups)


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
    return any_convolution(context, x, weight, bias, stride, padding, dilation, True, output_padding, groups)


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
    if isinstance(weight, Value):
        raise context.unsupported("bounded inputs", PRODUCT)
    require_batch(x.index, weight)
    kernel = context.constant(weight).numpy()
    taps = kernel.shape[2:]
    stride, dilation = spread(stride, len(taps)), spread(dilation, len(taps))
    pairs = _padding(padding, taps, dilation)
    geometry: dict[str, Any] = {
        "kernel": kernel,
        "stride": tuple(stride),
        "padding": pairs,
        "dilation": tuple(dilation),
    }
    node = None if is_transposed else _circular(context, x, geometry, groups)
    if node is not None:
        return _added(context, node, bias, node.result)
    source, layout = context.builder.samples(x)
    parts = len(layout.entries)
    geometry |= {"kernel": np.tile(kernel, (parts, *[1] * (kernel.ndim - 1))) if parts > 1 else kernel}
    image = (parts * x.shape[1], *x.shape[2:])
    if is_transposed:
        lengths = zip(x.shape[2:], stride, pairs, dilation, taps, spread(output_padding, len(taps)), strict=True)
        larger = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, s, (p, _), d, k, e in lengths]
        image = (parts * groups * kernel.shape[1], *larger)
    node = Convolution(
        sources=(source,),
        image=image,
        groups=parts * groups,
        transposed=is_transposed,
        name=context.name,
        **geometry,
    )
    if is_transposed and node.result[1:] != x.shape[2:]:
        raise context.unsupported("not yet", "An output padding that is longer than the stride has no rule.")
    return _added(context, node, bias, image if is_transposed else node.result, layout)


def _circular(context: Context, x: Value, geometry: dict[str, Any], groups: int) -> Convolution | None:
    """The convolution on a torus that a circular padding and a convolution without padding make."""
    if x.padded is None or any(map(any, geometry["padding"])):
        return None
    inner, pad = x.padded
    around = [(pad[k], pad[k + 1]) if k < len(pad) else (0, 0) for k in range(0, 2 * (inner.index.ndim - 2), 2)]
    if len(pad) > len(around) * 2 or min(pad) < 0:
        return None
    known = geometry | {"padding": tuple(reversed(around)), "image": tuple(inner.shape[1:]), "circular": True}
    try:
        source = context.builder.ordered(inner)
        return Convolution(sources=(source,), groups=groups, name=context.name, **known)
    except (ArgumentError, SampleMixing):  # outputs or taps meet on the circle, or there are frames: it is padded
        return None


def _added(context: Context, node: Convolution, bias: Any, shape: Sequence[int], layout: Layout | None = None) -> Value:
    """The node with its bias, one a channel, at the places of the parts that were convolved."""
    offsets = None
    if bias is not None:
        known = context.constant(bias).numpy()
        offsets = np.repeat(np.tile(known, shape[0] // len(known)), math.prod(shape[1:]))
    number = context.builder.add(node, offsets)
    if layout is None:
        return context.builder.whole(number, shape)
    channels = shape[0] // len(layout.entries)
    return layout.place(number, channels, *shape[1:])
