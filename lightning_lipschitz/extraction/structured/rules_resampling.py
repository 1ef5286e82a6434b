"""Average pooling and interpolation: separable, one matrix an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF, frobenius, product_up
from lightning_lipschitz.extraction.images import each_channel
from lightning_lipschitz.extraction.structured.registry import Context, rule
from lightning_lipschitz.extraction.structured.value import Value
from lightning_lipschitz.structured import Along
from lightning_lipschitz.structured.nodes import Array


def _spread(value: Any, dims: int) -> list[Any]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * dims if len(values) == 1 else values


def _separable(context: Context, x: Value, matrices: Sequence[Array], relative: float) -> Value:
    """One matrix for every dimension after the channels, its entries exact to a relative error."""
    shape, number = list(x.index.shape[1:]), context.builder.ordered(x)
    for axis, matrix in enumerate(matrices, start=1):
        before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
        rounding = product_up(relative, frobenius(matrix))
        node = Along(sources=(number,), matrix=matrix, before=before, after=after, rounding=rounding, name=context.name)
        number, shape[axis] = context.builder.add(node), len(matrix)
    return context.builder.whole(number, shape)


def _windows(spans: Sequence[tuple[int, int]], length: int, divisors: Sequence[float]) -> Array:
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
    lengths = x.index.shape[2:]
    dims = len(lengths)
    kernel, padding = _spread(kernel_size, dims), _spread(padding, dims)
    stride = _spread(stride, dims) if stride not in ((), [], None) else kernel
    matrices = []
    for axis, (n, k, s, p) in enumerate(zip(lengths, kernel, stride, padding, strict=True)):
        spans = _spans(n, k, s, p, ceil_mode)
        inside = [min(end, n) - max(start, 0) for start, end in spans]
        counts: list[float] = [end - start for start, end in spans] if count_include_pad else list(inside)
        if divisor_override is not None:
            counts = [divisor_override if axis == 0 else 1.0] * len(spans)
        matrices.append(_windows(spans, n, counts))
    return _separable(context, x, matrices, UNIT_ROUNDOFF)


def _spans(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> list[tuple[int, int]]:
    """First and last-but-one position of every window, cut where the padding ends."""
    room = length + 2 * padding - kernel
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        count -= 1
    starts = [i * stride - padding for i in range(count)]
    return [(start, min(start + kernel, length + padding)) for start in starts]


def adaptive_average_pool(context: Context, x: Value, output_size: Any) -> Value:
    """Windows from floor(i n / m) to ceil((i + 1) n / m)."""
    lengths = x.index.shape[2:]
    sizes = [n if m is None else m for n, m in zip(lengths, _spread(output_size, len(lengths)), strict=True)]
    matrices = []
    for n, m in zip(lengths, sizes, strict=True):
        spans = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
        matrices.append(_windows(spans, n, [end - start for start, end in spans]))
    return _separable(context, x, matrices, UNIT_ROUNDOFF)


def _register(operator: str, mode: str, corners: bool) -> None:
    @rule(operator)
    def interpolate(context: Context, x: Value, size: Any, *rest: Any) -> Value:
        """What the operator does to unit vectors, an axis at a time."""
        *align, factors = rest if rest else (None,)
        dims = x.index.ndim - 2
        option = {"align_corners": align[0]} if corners else {}
        sizes, scales = ([None] * dims if each is None else _spread(each, dims) for each in (size, factors))
        matrices = []
        for n, m, scale in zip(x.index.shape[2:], sizes, scales, strict=True):
            units = torch.eye(n, dtype=torch.float64)[:, None]
            columns = F.interpolate(units, size=m, scale_factor=None if m else scale, mode=mode, **option)[:, 0]
            matrices.append(columns.numpy().T.copy())
        return _separable(context, x, matrices, 0.0 if mode.startswith("nearest") else 16 * UNIT_ROUNDOFF)


for _dims in (1, 2, 3):
    rule(f"avg_pool{_dims}d")(each_channel(_dims, average_pool))
    rule(f"adaptive_avg_pool{_dims}d")(each_channel(_dims, adaptive_average_pool))
rule("_adaptive_avg_pool2d")(each_channel(2, adaptive_average_pool))
for _dims, _linear in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    _register(f"upsample_nearest{_dims}d", "nearest", corners=False)
    _register(f"_upsample_nearest_exact{_dims}d", "nearest-exact", corners=False)
    _register(f"upsample_{_linear}{_dims}d", "linear", corners=True)
