"""Rules for pooling: average pooling is affine, max pooling a layer with one group of units a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lightning_lipschitz.extraction.images import each_channel
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules_arithmetic import div
from lightning_lipschitz.extraction.rules_convolution import padded, spread, windows_of
from lightning_lipschitz.extraction.rules_group import on_vectors, vector_length
from lightning_lipschitz.extraction.rules_matrix import along, apply_weight
from lightning_lipschitz.extraction.traced import Traced
from lightning_lipschitz.network import Array


def _reach(lengths: Sequence[int], outputs: Sequence[int], geometry: Any) -> list[int]:
    """Padding, as ``F.pad`` wants it, with which windows of this geometry are as many as the operator makes."""
    sides: list[int] = []
    for length, count, (size, step, gap, before) in zip(lengths, outputs, geometry, strict=True):
        after = (count - 1) * step + gap * (size - 1) + 1 - length - before
        sides = [before, max(after, 0), *sides]
    return sides


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
    """The sum of every window, zeros around, divided by the entries that the operator counts."""
    dims = x.index.ndim - 2
    kernel, sides = spread(kernel_size, dims), spread(padding, dims)
    stride = spread(stride, dims) if stride not in ((), [], None) else kernel
    counts, divisors = _counted(x.index.shape[2:], kernel, stride, sides, ceil_mode, count_include_pad)
    border = _reach(x.index.shape[2:], counts.shape, zip(kernel, stride, [1] * dims, sides, strict=True))
    windows = windows_of(padded(context, x, border), kernel, stride, [1] * dims)
    index = windows.index.movedim(1 + dims, 1).flatten(2 + dims)
    total = apply_weight(replace(windows, index=index), np.ones((1, math.prod(kernel))))
    sums = replace(total, index=total.index.squeeze(-1))
    return div(context, sums, divisors if divisor_override is None else float(divisor_override))


def _counted(
    lengths: Sequence[int], kernel: list[int], stride: list[int], sides: list[int], ceil: bool, pads: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every window, the entries of the tensor in it and the number that their sum is divided by.

    Asked of the operator itself: the mean of ones, zeros around, is their quotient.
    """
    dims = max(len(kernel), 2)
    ones = torch.ones(1, 1, *[1] * (dims - len(kernel)), *lengths, dtype=torch.float64)
    size, step, side = ([fill] * (dims - len(kernel)) + given for fill, given in ((1, kernel), (1, stride), (0, sides)))
    pool = torch.ops.aten.avg_pool3d if dims == 3 else torch.ops.aten.avg_pool2d  # the former wants larger images
    means = pool(ones, size, step, side, ceil, pads)
    volume = pool(ones, size, step, side, ceil, pads, 1)
    shape = volume.shape[2 + dims - len(kernel) :]
    return volume.reshape(shape).round(), (volume / means).round().reshape(shape)


def adaptive_average_pool(context: Context, x: Traced, output_size: Any) -> Any:
    """The mean of every window; they may be of unequal size and overlap."""
    for axis, windows in enumerate(_adaptive(x.index.shape[2:], output_size), start=2):
        totals = along(x, axis, windows)
        sizes = torch.from_numpy(windows.sum(1)).reshape(-1, *[1] * (x.index.ndim - axis - 1))
        x = div(context, totals, sizes)
    return x


def _adaptive(lengths: Sequence[int], output_size: Any) -> list[Array]:
    """For every dimension, the windows as rows of zeros and ones: from floor(i n / m) to ceil((i + 1) n / m)."""
    found = []
    for n, want in zip(lengths, spread(output_size, len(lengths)), strict=True):
        m = n if want is None else int(want)
        starts, ends = np.arange(m) * n // m, -(-np.arange(1, m + 1) * n // m)
        places = np.arange(n)
        found.append(((places >= starts[:, None]) & (places < ends[:, None])).astype(np.float64))
    return found


def max_pool(
    context: Context,
    x: Traced,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    """The largest entry of every window.

    One window has constant 1: |max u - max v| <= max |u - v| <= |u - v|_2. All of them together have at most the root
    of the largest number n_i of windows that one entry is in: sum over w of |u_w - v_w|^2 = sum over i of
    n_i |u_i - v_i|^2. That root is not computed here: y gathers the entries of the windows, y = G x, with
    G'G = diag(n_i), and every bound sees the norm of G (composed with the maps before it, which can only help). Places
    past the border are units that no input reaches.
    """
    dims = x.index.ndim - 2
    kernel, gaps, sides = (spread(each, dims) for each in (kernel_size, dilation, padding))
    stride = spread(stride, dims) if stride not in ((), [], None) else kernel
    lengths = x.index.shape[2:]
    geometry = list(zip(kernel, stride, gaps, sides, strict=True))
    counts = [_count(n, *each, ceil_mode) for n, each in zip(lengths, geometry, strict=True)]
    border = _reach(lengths, counts, geometry)
    inside = torch.nn.functional.pad(torch.ones(x.index.shape, dtype=torch.int64), border)
    there = windows_of(replace(x, index=inside), kernel, stride, gaps)
    windows = windows_of(padded(context, x, border), kernel, stride, gaps)
    flat, mask = (each.index.movedim(1 + dims, 1).flatten(2 + dims) for each in (windows, there))
    return on_vectors(context, replace(windows, index=flat), (-1.0, 1.0), _largest, scalar=True, parameters=(mask,))


@rule("l2_pool")
def l2_pool(context: Context, x: Traced, kernel: list[int], stride: list[int]) -> Any:
    """The l2 norm of every window, 1-Lipschitz by the triangle inequality; overlap is in G, as for :func:`max_pool`."""
    return each_channel(len(kernel), _l2_pool)(context, x, kernel, stride)


def _l2_pool(context: Context, x: Traced, kernel: list[int], stride: list[int]) -> Traced:
    windows = windows_of(x, kernel, stride, [1] * len(kernel))
    flat = replace(windows, index=windows.index.movedim(1 + len(kernel), 1).flatten(2 + len(kernel)))
    return on_vectors(context, flat, (-1.0, 1.0), vector_length, scalar=True)


def _count(length: int, size: int, step: int, gap: int, side: int, ceil: bool) -> int:
    """Windows along one dimension; rounded up, but the last one must start before the far border's padding."""
    room = length + 2 * side - gap * (size - 1) - 1
    if not ceil:
        return room // step + 1
    count = -(-room // step) + 1
    return count - 1 if (count - 1) * step >= length + side else count


def _largest(y: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return torch.where(inside > 0, y, -torch.inf).amax(-1, keepdim=True)


def max_pool_with_indices(context: Context, x: Traced, *args: Any, **kwargs: Any) -> tuple[Any, None]:
    """The values; the positions jump and have no rule."""
    return max_pool(context, x, *args, **kwargs), None


def adaptive_max_pool(context: Context, x: Traced, output_size: Any) -> tuple[Any, None]:
    """One maximum after the other: along each dimension, over windows that may be of unequal size and overlap."""
    for axis, windows in enumerate(_adaptive(x.index.shape[2:], output_size), start=2):
        width = int(windows.sum(1).max())
        places = np.array([np.resize(np.flatnonzero(row), width) for row in windows])
        inside = np.arange(width) < windows.sum(1)[:, None]
        moved = x.index.movedim(axis, -1)
        flat = moved[..., torch.from_numpy(places)]
        mask = torch.from_numpy(inside.astype(np.int64)).expand(flat.shape)
        result = on_vectors(
            context, replace(x, index=flat), (-1.0, 1.0), _largest, scalar=True, parameters=(mask.contiguous(),)
        )
        x = replace(result, index=result.index.movedim(-1, axis))
    return x, None


for _dims in (1, 2, 3):
    rule(f"avg_pool{_dims}d")(each_channel(_dims, average_pool))
    rule(f"adaptive_avg_pool{_dims}d")(each_channel(_dims, adaptive_average_pool))
    rule(f"max_pool{_dims}d")(each_channel(_dims, max_pool))
    rule(f"max_pool{_dims}d_with_indices")(each_channel(_dims, max_pool_with_indices))
    rule(f"adaptive_max_pool{_dims}d")(each_channel(_dims, adaptive_max_pool))
rule("_adaptive_avg_pool2d")(each_channel(2, adaptive_average_pool))
