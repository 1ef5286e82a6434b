"""Rules for pooling: averages are a matrix along each dimension, maxima and norms are units on the windows.

One window has the constant 1: ``|max u - max v| <= max |u - v| <= |u - v|_2``, and for the l2 norm by the triangle
inequality. All of them together have at most the root of the largest number n_i of windows that one entry is in: sum
over w of ``|u_w - v_w|^2`` = sum over i of ``n_i |u_i - v_i|^2``. That root is not computed here: the windows are
gathered, y = G x, with ``G'G = diag(n_i)``, and every bound sees the norm of G (composed with the maps before it, which
can only help). Places past the border are entries that no input reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF
from lightning_lipschitz.extraction.images import each_channel, spread
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules.linear import along_axes
from lightning_lipschitz.extraction.rules.movement import constant_pad_nd
from lightning_lipschitz.extraction.rules.vectors import on_vectors, vector_length
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.graph.arrays import Array

Spans = Sequence[tuple[int, int]]


def _spans(length: int, size: int, step: int, side: int, gap: int, ceil_mode: bool) -> Spans:
    """First position of every window and the one after its last, cut where the padding ends.

    Rounded up, there may be one window more, which must start before the far border's padding.
    """
    reach = gap * (size - 1) + 1
    room = length + 2 * side - reach
    count = (-(-room // step) if ceil_mode else room // step) + 1
    if ceil_mode and (count - 1) * step >= length + side:
        count -= 1
    return [(i * step - side, min(i * step - side + reach, length + side)) for i in range(count)]


def _adaptive_spans(length: int, count: int | None) -> Spans:
    """Windows from floor(i n / m) to ceil((i + 1) n / m)."""
    m = length if count is None else int(count)
    return [(i * length // m, -(-(i + 1) * length // m)) for i in range(m)]


def _means(spans: Spans, length: int, divisors: Sequence[float]) -> Array:
    """Row i: 1 / divisor on the entries of span i that exist."""
    matrix = np.zeros((len(spans), length))
    for row, (start, end), divisor in zip(matrix, spans, divisors, strict=True):
        row[max(start, 0) : min(end, length)] = 1.0 / divisor
    return matrix


def average_pool(
    context: Context,
    x: Value,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """The mean of every window; what it is divided by is a product over the axes too."""
    dims = x.index.ndim - 2
    kernel, padding = spread(kernel_size, dims), spread(padding, dims)
    stride = spread(stride, dims) if stride not in ((), [], None) else kernel
    matrices = []
    for axis, (n, k, s, p) in enumerate(zip(x.shape[2:], kernel, stride, padding, strict=True)):
        spans = _spans(n, k, s, p, 1, ceil_mode)
        inside = [min(end, n) - max(start, 0) for start, end in spans]
        counts: list[float] = [end - start for start, end in spans] if count_include_pad else list(inside)
        if divisor_override is not None:
            counts = [divisor_override if axis == 0 else 1.0] * len(spans)
        matrices.append(_means(spans, n, counts))
    return along_axes(context, x, matrices, UNIT_ROUNDOFF)


def adaptive_average_pool(context: Context, x: Value, output_size: Any) -> Value:
    """The mean of every window; they may be of unequal size and overlap."""
    lengths = x.shape[2:]
    spans = [_adaptive_spans(n, m) for n, m in zip(lengths, spread(output_size, len(lengths)), strict=True)]
    counted = [[end - start for start, end in each] for each in spans]
    matrices = [_means(each, n, counts) for each, n, counts in zip(spans, lengths, counted, strict=True)]
    return along_axes(context, x, matrices, UNIT_ROUNDOFF)


def windows_of(index: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], gaps: Sequence[int]) -> torch.Tensor:
    """(N, C, *spatial) -> (N, C, *windows, entries of a window)."""
    dims = len(kernel)
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, gaps, strict=True), start=2):
        index = index.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return index.flatten(2 + dims)


def max_pool(
    context: Context,
    x: Value,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    """The largest entry of every window."""
    dims = x.index.ndim - 2
    kernel, gaps, sides = (spread(each, dims) for each in (kernel_size, dilation, padding))
    stride = spread(stride, dims) if stride not in ((), [], None) else kernel
    border: list[int] = []
    for n, k, s, g, p in zip(x.shape[2:], kernel, stride, gaps, sides, strict=True):
        last = _spans(n, k, s, p, g, ceil_mode)[-1][0] + g * (k - 1) + 1
        border = [p, max(last - n, 0), *border]
    if not any(border):
        return on_vectors(context, x.moved(windows_of(x.index, kernel, stride, gaps)), (-1.0, 1.0), _max, scalar=True)
    inside = windows_of(F.pad(torch.ones(x.shape, dtype=torch.bool), border), kernel, stride, gaps)
    padded = constant_pad_nd(context, x, border)
    windows = padded.moved(windows_of(padded.index, kernel, stride, gaps))
    return on_vectors(context, windows, (-1.0, 1.0), _largest, scalar=True, parameters=(inside,))


@rule("l2_pool")
def l2_pool(context: Context, x: Value, kernel: list[int], stride: list[int]) -> Any:
    """The l2 norm of every window."""
    return each_channel(len(kernel), _l2_pool)(context, x, kernel, stride)


def _l2_pool(context: Context, x: Value, kernel: list[int], stride: list[int]) -> Value:
    windows = x.moved(windows_of(x.index, kernel, stride, [1] * len(kernel)))
    return on_vectors(context, windows, (-1.0, 1.0), vector_length, scalar=True)


def _max(y: torch.Tensor) -> torch.Tensor:
    return y.amax(-1, keepdim=True)


def _largest(y: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return torch.where(inside > 0, y, -torch.inf).amax(-1, keepdim=True)


def max_pool_with_indices(context: Context, x: Value, *args: Any, **kwargs: Any) -> tuple[Value, None]:
    """The values; the positions jump and have no rule."""
    return max_pool(context, x, *args, **kwargs), None


def adaptive_max_pool(context: Context, x: Value, output_size: Any) -> tuple[Value, None]:
    """One maximum after the other: along each dimension, over windows that may be of unequal size and overlap."""
    for axis, m in enumerate(spread(output_size, x.index.ndim - 2), start=2):
        spans = _adaptive_spans(x.shape[axis], m)
        width = max(end - start for start, end in spans)
        places = torch.from_numpy(np.array([np.resize(np.arange(*span), width) for span in spans]))
        windows = x.index.movedim(axis, -1)[..., places]  # a shorter window holds its first entries again
        inside = torch.tensor([[k < end - start for k in range(width)] for start, end in spans]).expand(windows.shape)
        result = on_vectors(
            context, x.moved(windows), (-1.0, 1.0), _largest, scalar=True, parameters=(inside.contiguous(),)
        )
        x = result.moved(result.index.movedim(-1, axis))
    return x, None


for _dims in (1, 2, 3):
    rule(f"avg_pool{_dims}d")(each_channel(_dims, average_pool))
    rule(f"adaptive_avg_pool{_dims}d")(each_channel(_dims, adaptive_average_pool))
    rule(f"max_pool{_dims}d")(each_channel(_dims, max_pool))
    rule(f"max_pool{_dims}d_with_indices")(each_channel(_dims, max_pool_with_indices))
    rule(f"adaptive_max_pool{_dims}d")(each_channel(_dims, adaptive_max_pool))
rule("_adaptive_avg_pool2d")(each_channel(2, adaptive_average_pool))
