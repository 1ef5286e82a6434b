"""Blocks of which only the norm is bounded: max-pooling, softmax, normalisation of a sample by its own statistics.

The constants, in the l2 norm:

* max-pooling: ``|max a - max b| <= max |a_i - b_i|`` in every window, so the square root of the largest number of
  windows that one entry lies in; the same for l2 norms.
* softmax: its Jacobian diag(p) - p p' has no eigenvalue above max 2 p_i (1 - p_i) <= 1/2 (Gershgorin).
* log-softmax of n entries: I - 1 p' is a projection, of norm |1| |p| <= sqrt(n).
* (x - mean) / sqrt(variance + eps): its Jacobian is (P - c c') / s with P a projection, 0 <= c c' <= P and s >=
  sqrt(eps), so 1 / sqrt(eps); the same without the mean (root mean square).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from lightning_lipschitz.certificate.floating_point import round_up, sqrt_up
from lightning_lipschitz.extraction import functions
from lightning_lipschitz.extraction.images import each_channel
from lightning_lipschitz.extraction.structured.registry import Context, rule
from lightning_lipschitz.extraction.structured.rules_linear import batch_norm, scaled
from lightning_lipschitz.extraction.structured.value import Value
from lightning_lipschitz.structured import Bounded

Function = Callable[[torch.Tensor], torch.Tensor]


def bounded(context: Context, x: Value, shape: Sequence[int], kappa: float, function: Function) -> Value:
    """A block on sample-first tensors; ``shape`` is that of one sample of the result."""
    inner = x.entries().shape
    node = Bounded(sources=(context.builder.ordered(x),), size=math.prod(shape), kappa=kappa, name=context.name)

    def run(y: torch.Tensor) -> torch.Tensor:
        return function(y.reshape(len(y), *inner)).reshape(len(y), -1)

    return context.builder.whole(context.builder.add(node, None, run), shape)


def _spread(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _busiest(length: int, kernel: int, stride: int, padding: int, dilation: int, count: int) -> int:
    """The largest number of windows that one entry of an axis lies in."""
    read = np.arange(count)[:, None] * stride + np.arange(kernel) * dilation - padding
    return int(np.bincount(read[(read >= 0) & (read < length)], minlength=1).max())


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
    lengths = x.index.shape[2:]
    dims = len(lengths)
    kernel, padding, dilation = (_spread(each, dims) for each in (kernel_size, padding, dilation))
    stride = _spread(stride, dims) if stride not in ((), [], None) else kernel
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]

    def run(y: torch.Tensor) -> torch.Tensor:
        return pool(y, kernel, stride, padding, dilation, ceil_mode)

    shape = run(torch.zeros(1, 1, *lengths)).shape[2:]
    overlap = math.prod(map(_busiest, lengths, kernel, stride, padding, dilation, shape))
    return bounded(context, x, (x.index.shape[1], *shape), sqrt_up(Fraction(overlap)), run)


@rule("l2_pool")
def l2_pool(context: Context, x: Value, kernel: list[int], stride: list[int]) -> Value:
    """The l2 norm of every window."""
    return each_channel(len(kernel), _l2_pool)(context, x, kernel, stride)  # type: ignore[no-any-return]


def _l2_pool(context: Context, x: Value, kernel: list[int], stride: list[int]) -> Value:
    lengths = x.index.shape[2:]
    shape = [(n - size) // step + 1 for n, size, step in zip(lengths, kernel, stride, strict=True)]
    overlap = math.prod(_busiest(n, k, s, 0, 1, m) for n, k, s, m in zip(lengths, kernel, stride, shape, strict=True))
    kappa = sqrt_up(Fraction(overlap))
    return bounded(context, x, (x.index.shape[1], *shape), kappa, lambda y: functions.l2_pool(y, kernel, stride))


def max_pool_with_indices(context: Context, x: Value, *args: Any, **kwargs: Any) -> tuple[Value, None]:
    """The same; where the largest entries were is not known."""
    return max_pool(context, x, *args, **kwargs), None


def adaptive_max_pool(context: Context, x: Value, output_size: Any) -> tuple[Value, None]:
    """The same with windows from floor(i n / m) to ceil((i + 1) n / m)."""
    lengths = x.index.shape[2:]
    sizes = _spread(output_size, len(lengths))
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[len(lengths) - 1]
    overlap = 1
    for n, m in zip(lengths, sizes, strict=True):
        windows = [range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
        overlap *= int(np.bincount(np.concatenate(windows)).max())
    shape = (x.index.shape[1], *sizes)
    return bounded(context, x, shape, sqrt_up(Fraction(overlap)), lambda y: pool(y, sizes)), None


for _dims in (1, 2, 3):
    rule(f"max_pool{_dims}d")(each_channel(_dims, max_pool))
    rule(f"max_pool{_dims}d_with_indices")(each_channel(_dims, max_pool_with_indices))
    rule(f"adaptive_max_pool{_dims}d")(each_channel(_dims, adaptive_max_pool))


@rule("softmax", "_softmax")
def softmax(context: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    """Constant 1/2 along any dimension of a sample."""
    axis = _own(context, x, dim)
    return bounded(context, x, x.index.shape[1:], 0.5, lambda y: torch.softmax(y, axis))


@rule("log_softmax", "_log_softmax")
def log_softmax(context: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    """Constant sqrt(n) along any dimension of n entries."""
    axis = _own(context, x, dim)
    kappa = sqrt_up(Fraction(x.index.shape[axis]))
    return bounded(context, x, x.index.shape[1:], kappa, lambda y: torch.log_softmax(y, axis))


@rule("unit_ball")
def unit_ball(context: Context, x: Value, dim: int, least: float) -> Value:
    """Constant 1 / r: ``x / max(|x|, r)`` is the projection on a ball of radius r, divided by r."""
    axis, kappa = _own(context, x, dim), round_up(1 / Fraction(least))
    return bounded(context, x, x.index.shape[1:], kappa, lambda y: functions.unit_ball(y, axis, least))


def _own(context: Context, x: Value, dim: int) -> int:
    axis = dim % x.index.ndim
    if axis == 0:
        raise context.refused("Samples of a batch act on each other.", "The model must treat every sample on its own.")
    return axis


def _flattest(context: Context, eps: float) -> float:
    """1 / sqrt(eps), rounded up."""
    if not eps > 0:
        raise context.unsupported("never", "With eps = 0 its slope is unbounded where a sample has no variance.")
    return sqrt_up(1 / Fraction(eps))


def _affine(context: Context, x: Value, weight: Any, bias: Any, shape: Sequence[int]) -> Value:
    if weight is None and bias is None:
        return x
    gain = torch.ones((), dtype=torch.float64) if weight is None else context.constant(weight).reshape(*shape)
    shift = None if bias is None else context.constant(bias).reshape(*shape)
    return scaled(context, x, gain, 0.0, shift)


@rule("layer_norm")
def layer_norm(
    context: Context, x: Value, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value:
    """By the statistics of the last dimensions."""
    kappa = _flattest(context, eps)
    normal = bounded(context, x, x.index.shape[1:], kappa, lambda y: F.layer_norm(y, shape, eps=eps))
    return _affine(context, normal, weight, bias, shape)


@rule("rms_norm")
def rms_norm(context: Context, x: Value, shape: list[int], weight: Any = None, eps: float | None = None) -> Value:
    """By the root mean square of the last dimensions."""
    if eps is None:
        raise context.unsupported("replace", "Give it an eps: its default depends on the arithmetic it runs in.")
    kappa = _flattest(context, eps)
    normal = bounded(context, x, x.index.shape[1:], kappa, lambda y: F.rms_norm(y, shape, eps=eps))
    return _affine(context, normal, weight, None, shape)


@rule("group_norm")
def group_norm(
    context: Context, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value:
    """By the statistics of groups of channels."""
    kappa = _flattest(context, eps)
    normal = bounded(context, x, x.index.shape[1:], kappa, lambda y: F.group_norm(y, groups, eps=eps))
    return _affine(context, normal, weight, bias, (-1, *[1] * (x.index.ndim - 2)))


@rule("instance_norm")
def instance_norm(
    context: Context,
    x: Value,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Value:
    """By the statistics of every channel of a sample; with running statistics it is a batch norm."""
    if not use_input_stats:
        return batch_norm(context, x, weight, bias, mean, variance, False, momentum, eps)
    return group_norm(context, x, x.index.shape[1], weight, bias, eps)
