"""Rules for convolutions and average pooling: one matrix for every window.

The windows of a tensor are a matter of moving data; ``Tensor.unfold`` on the integers of a ``Traced`` finds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules_arithmetic import PRODUCT, div
from lightning_lipschitz.extraction.rules_matrix import apply_weight
from lightning_lipschitz.extraction.rules_shape import cat, constant_pad_nd
from lightning_lipschitz.extraction.traced import Traced


def _windows(x: Traced, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Traced:
    """(N, C, *spatial) -> (N, *windows, C, *kernel)."""
    index = x.index
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        index = index.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return replace(x, index=index.movedim(1, 1 + len(kernel)))


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """As ``F.pad`` wants it: before and after, last dimension first."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
        sides = [(each // 2, each - each // 2) for each in total]
    else:
        sides = [(each, each) for each in _spread(padding, len(kernel))]
    return [side for pair in reversed(sides) for side in pair]


def _spread(value: Any, dims: int) -> list[int]:
    """One number for every dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _padded(context: Context, x: Traced, padding: list[int]) -> Traced:
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
        raise context.unsupported("never", PRODUCT)
    kernel = weight.shape[2:]
    stride, dilation = _spread(stride, len(kernel)), _spread(dilation, len(kernel))
    x = _padded(context, x, _padding(padding, kernel, dilation))
    kernels = context.constant(weight).flatten(1).chunk(groups)
    offsets = [None] * groups if bias is None else [part.numpy() for part in context.constant(bias).chunk(groups)]
    results = []
    for part, kernel_part, offset in zip(x.index.chunk(groups, 1), kernels, offsets, strict=True):
        windows = _windows(replace(x, index=part), kernel, stride, dilation)
        flat = replace(x, index=windows.index.flatten(1 + len(kernel)))
        result = apply_weight(flat, kernel_part.numpy(), offset)
        results.append(replace(result, index=result.index.movedim(-1, 1)))
    return results[0] if groups == 1 else cat(context, results, 1)


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(
    context: Context,
    x: Traced,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of every window."""
    dims = x.index.ndim - 2
    kernel = _spread(kernel_size, dims)
    stride = _spread(stride, dims) if stride not in ((), []) else kernel
    border = _padding(padding, kernel, [1] * dims)
    if ceil_mode or (any(border) and not count_include_pad):
        raise context.unsupported(
            "not yet", "Windows of unequal size have no rule; use ceil_mode=False and no padding."
        )
    windows = _windows(_padded(context, x, border), kernel, stride, [1] * dims)
    index = windows.index.movedim(1 + dims, 1).flatten(2 + dims)
    return _mean(context, replace(windows, index=index), divisor_override or math.prod(kernel))


def _mean(context: Context, windows: Traced, divisor: int) -> Traced:
    total = apply_weight(windows, np.ones((1, windows.index.shape[-1])))
    return div(context, replace(total, index=total.index.squeeze(-1)), float(divisor))


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_average_pool(context: Context, x: Traced, output_size: Any) -> Any:
    """The mean of every window, when they are of equal size."""
    lengths = x.index.shape[2:]
    sizes = [n if want is None else want for n, want in zip(lengths, _spread(output_size, len(lengths)), strict=True)]
    if any(n % want for n, want in zip(lengths, sizes, strict=True)):
        raise context.unsupported(
            "not yet", f"Windows of unequal size ({tuple(lengths)} to {tuple(sizes)}) have no rule."
        )
    return average_pool(context, x, [n // want for n, want in zip(lengths, sizes, strict=True)])
