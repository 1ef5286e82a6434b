r"""Rules for layer, group, instance and RMS normalisation: finite constants, and large ones.

Each of them is, on a vector y of n entries and up to a final scale and shift of every entry,

    h(P y),   h(c) = c / s,   s = sqrt(|c|^2 / n + eps),

with P the identity (RMS) or the orthogonal projection that takes the mean away. h is the gradient of the convex
function n s(c). Its Jacobian (I - c c' / (n s^2)) / s is symmetric with eigenvalues 1/s (across c) and eps / s^3 (along
c), all in (0, 1/sqrt(eps)]. Hence y -> P h(P y) = h(P y) is the gradient of the convex function n s(P y), its Jacobian
P J P has norm at most 1/sqrt(eps), and ``rules/vectors`` applies with alpha = 0, beta = 1/sqrt(eps): 316 at the usual
eps = 1e-5.
The constant is attained at constant inputs (P y = 0), so no global bound of the layer can be smaller; for inputs of
unit variance the layer is far less steep, which a global bound cannot know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules.linear import batch_norm, scaled
from lightning_lipschitz.extraction.rules.vectors import on_vectors
from lightning_lipschitz.extraction.value import Value


def _normalised(context: Context, x: Value, eps: float, centre: bool) -> Value:
    """h(P y) of every vector along the last dimension."""
    if not eps > 0:
        raise context.unsupported("never", "With eps = 0 its slope grows without bound towards constant inputs.")
    steepest = 1.0 / math.sqrt(eps) * (1.0 + 2.0**-50)  # above the real number: two roundings of at most 2^-53 each
    return on_vectors(context, x, (0.0, steepest), _function(eps, centre))


def _function(eps: float, centre: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    def normalise(y: torch.Tensor) -> torch.Tensor:
        y = y - y.mean(-1, keepdim=True) if centre else y
        return y / torch.sqrt(y.square().mean(-1, keepdim=True) + eps)

    return normalise


def _affine(context: Context, x: Value, weight: Any, bias: Any) -> Any:
    if weight is None and bias is None:
        return x
    gain = context.constant(1.0 if weight is None else weight)
    shift = None if bias is None else context.constant(bias)
    return scaled(context, x, gain, 0.0, shift)


def _over_last(context: Context, x: Value, dims: int, eps: float, centre: bool) -> Value:
    shape = x.shape
    flat = x.moved(x.index.flatten(x.index.ndim - dims))
    result = _normalised(context, flat, eps, centre)
    return result.moved(result.index.reshape(shape))


@rule("layer_norm")
def layer_norm(
    context: Context,
    x: Value,
    normalized_shape: list[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """Over the last dimensions."""
    return _affine(context, _over_last(context, x, len(normalized_shape), eps, centre=True), weight, bias)


@rule("native_layer_norm")
def native_layer_norm(context: Context, x: Value, shape: list[int], weight: Any, bias: Any, eps: float) -> Any:
    """Layer norm together with statistics that no one reads."""
    return layer_norm(context, x, shape, weight, bias, eps), None, None


@rule("rms_norm", "_fused_rms_norm")
def rms_norm(
    context: Context, x: Value, normalized_shape: list[int], weight: Any = None, eps: float | None = None
) -> Any:
    """Over the last dimensions, without taking the mean away."""
    if eps is None:
        raise context.unsupported(
            "replace", "Give it an eps: by default it is that of the dtype, another function in every precision."
        )
    return _affine(context, _over_last(context, x, len(normalized_shape), eps, centre=False), weight, None)


def _by_channel(parameter: Any, ndim: int) -> Any:
    return None if parameter is None else parameter.reshape(-1, *[1] * (ndim - 2))


@rule("group_norm")
def group_norm(
    context: Context,
    x: Value,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Over groups of channels and all places, then scale and shift by channel."""
    shape = x.shape
    grouped = x.moved(x.index.reshape(shape[0], num_groups, -1))
    result = _normalised(context, grouped, eps, centre=True)
    result = result.moved(result.index.reshape(shape))
    return _affine(context, result, _by_channel(weight, len(shape)), _by_channel(bias, len(shape)))


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
    cudnn_enabled: bool = True,
) -> Any:
    """Each channel on its own; with running statistics it is a batch norm."""
    if not use_input_stats:
        return batch_norm(context, x, weight, bias, mean, variance, False, momentum, eps)
    return group_norm(context, x, x.shape[1], weight, bias, eps)
