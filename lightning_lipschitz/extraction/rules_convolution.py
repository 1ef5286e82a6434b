"""Rules for convolutions: one matrix for every window.

The windows of a tensor are a matter of moving data; ``Tensor.unfold`` on the integers of a ``Traced`` finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lightning_lipschitz.extraction.images import require_batch
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules_arithmetic import PRODUCT
from lightning_lipschitz.extraction.rules_matrix import apply_weight
from lightning_lipschitz.extraction.rules_shape import cat, constant_pad_nd
from lightning_lipschitz.extraction.traced import Traced


def windows_of(x: Traced, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Traced:
    """(N, C, *spatial) -> (N, *windows, C, *kernel)."""
    index = x.index
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        index = index.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return replace(x, index=index.movedim(1, 1 + len(kernel)))


def padding_of(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """As ``F.pad`` wants it: before and after, last dimension first."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
        sides = [(each // 2, each - each // 2) for each in total]
    else:
        sides = [(each, each) for each in spread(padding, len(kernel))]
    return [side for pair in reversed(sides) for side in pair]


def spread(value: Any, dims: int) -> list[Any]:
    """One number for every dimension."""
    values = [value] if value is None or isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def padded(context: Context, x: Traced, padding: list[int]) -> Traced:
    """Zeros around, where there are any."""
    return constant_pad_nd(context, x, padding) if any(padding) else x


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    context: Context,
    x: Traced,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Each group of channels by its own part of the weight."""
    if isinstance(weight, Traced):
        raise context.unsupported("not yet", PRODUCT)
    require_batch(x.index, weight)
    kernel = weight.shape[2:]
    stride, dilation = spread(stride, len(kernel)), spread(dilation, len(kernel))
    x = padded(context, x, padding_of(padding, kernel, dilation))
    kernels = context.constant(weight).flatten(1).chunk(groups)
    offsets = [None] * groups if bias is None else [part.numpy() for part in context.constant(bias).chunk(groups)]
    results = []
    for part, kernel_part, offset in zip(x.index.chunk(groups, 1), kernels, offsets, strict=True):
        windows = windows_of(replace(x, index=part), kernel, stride, dilation)
        flat = replace(x, index=windows.index.flatten(1 + len(kernel)))
        result = apply_weight(flat, kernel_part.numpy(), offset)
        results.append(replace(result, index=result.index.movedim(-1, 1)))
    return results[0] if groups == 1 else cat(context, results, 1)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    context: Context,
    x: Traced,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """A convolution of the input, ``stride - 1`` zeros between its entries, with the reflected kernels."""
    if isinstance(weight, Traced):
        raise context.unsupported("not yet", PRODUCT)
    require_batch(x.index, weight)
    kernel = weight.shape[2:]
    dims = len(kernel)
    stride, padding, extra, dilation = (spread(each, dims) for each in (stride, padding, output_padding, dilation))
    border: list[int] = []
    for axis in range(dims):
        x = _dilated(context, x, 2 + axis, stride[axis])
        side = dilation[axis] * (kernel[axis] - 1) - padding[axis]
        border = [side, side + extra[axis], *border]
    parts = [part.transpose(0, 1) for part in context.constant(weight).chunk(groups)]
    flipped = torch.cat(parts).flip(list(range(2, 2 + dims)))
    return convolution(context, padded(context, x, border), flipped, bias, 1, 0, dilation, groups)


@rule("convolution")
def any_convolution(
    context: Context,
    x: Traced,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    is_transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    """The operator behind all of them."""
    if is_transposed:
        return transposed_convolution(context, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolution(context, x, weight, bias, stride, padding, dilation, groups)


def _dilated(context: Context, x: Traced, axis: int, step: int) -> Traced:
    """``step - 1`` zeros between the entries along one dimension."""
    if step == 1:
        return x
    apart = replace(x, index=x.index.movedim(axis, -1).unsqueeze(-1))
    apart = constant_pad_nd(context, apart, [0, step - 1])
    index = apart.index.flatten(-2)[..., : 1 - step]
    return replace(apart, index=index.movedim(-1, axis))
