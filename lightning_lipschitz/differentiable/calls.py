"""Operators of a trace as calls on tensors, without the constants that they add: what is left is linear.

The bias of a convolution, of a matrix and of a batch norm says nothing about a norm, and beside a large one float32
loses the digits of what is asked. An operator that is not known to be linear is run as it is, and its image of zero is
taken away later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_lipschitz.extraction.patterns import operator_name

Values = dict[Any, Any]  # by node of the trace; the working dtype and device under the keys of these names
DTYPE, DEVICE = "dtype", "device"
_SMALL = 10**6  # products of numbers in a convolution, a pair of samples

_BIASED = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_BIASED |= {"convolution", "linear"}
_NORMS = {"batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"}
_NORMS |= {"miopen_batch_norm"}
_SHIFTS = {"add", "add_", "sub", "subtract"}
_SELF = {"detach", "alias", "lift_fresh_copy", "lift", "lift_fresh", "contiguous", "clone"}
_PADS = {"pad": 3, "constant_pad_nd": 2}  # where the number stands that they write
_OF_LISTS = {"cat", "concat", "concatenate", "stack"}
_LINEAR = {"matmul", "mm", "bmm", "mv", "mul", "multiply", "div", "divide", "true_divide", "neg", "negative", "sum"}
_LINEAR |= {"mean", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"}
_LINEAR |= {"adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "getitem", "reshape", "flatten"}
_LINEAR |= {"unflatten", "permute", "transpose", "t", "numpy_T", "squeeze", "unsqueeze", "expand", "expand_as", "slice"}
_LINEAR |= {"select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "flip", "roll", "index_select"}
_LINEAR |= {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "_to_copy", "to", "type_as", "dropout"}
_LINEAR |= {"feature_dropout", "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "movedim", "repeat"}


@dataclass(frozen=True, eq=False)
class Call:
    """One operator.

    Args:
        node: of the trace; its value is what the call puts down.
        function: what is called.
        args, kwargs: with nodes in the places of their values.
        linear: whether it is known to give zero for zeros.
    """

    node: Node
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    linear: bool = False

    def __call__(self, values: Values) -> None:
        """Put the operator's value beside those of its arguments."""
        kwargs = {name: _filled(each, values) for name, each in self.kwargs.items()}
        values[self.node] = self.function(*(_filled(each, values) for each in self.args), **kwargs)

    @property
    def reads(self) -> set[Node]:
        """The nodes whose values it needs."""
        return set(_nodes([*self.args, *self.kwargs.values()]))


def plain(node: Node) -> Call:
    """An operator as it stands in the trace."""
    name = operator_name(node.target)
    if name in ("view", "_unsafe_view"):  # of a tensor that may be laid out otherwise than in the trace
        return Call(node, Tensor.reshape, node.args, linear=True)
    if name == "copy":  # as the one below, it has no derivative, or a wrong one
        return Call(node, _written, node.args[:2], linear=True)
    if name == "scatter_add":
        return Call(node, _scattered, node.args)
    function: Any = node.target
    return Call(node, function, node.args, node.kwargs)


def without_constants(node: Node, shapes: Mapping[Node, torch.Size | None]) -> Call:
    """An affine operator without what it adds, as far as that is known.

    Args:
        node: of the trace.
        shapes: of what depends on the model's input, and of that alone; None for several tensors.
    """
    name, args = operator_name(node.target), node.args
    dependent = [isinstance(each, Node) and each in shapes for each in args]
    function: Any = node.target
    first_alone = dependent[:1] == [True] and not any(dependent[1:])
    if name in _SELF:  # a detached tensor is the same function of the input
        return Call(node, _same, args[:1], linear=True)
    if name in _BIASED and first_alone and "bias" not in node.kwargs:
        function = _convolved if node.target is torch.ops.aten.conv2d.default else function
        return Call(node, function, (*args[:2], *([None] if len(args) > 2 else []), *args[3:]), node.kwargs, True)
    if name in _NORMS and first_alone and len(args) >= 7:
        return Call(node, _gain_alone(name), (args[0], args[1], args[4], _eps(name, args)), linear=True)
    if name in _SHIFTS and dependent[:2] == [True, False] and shapes.get(node) == shapes[args[0]]:  # type: ignore[index]
        return Call(node, _same, args[:1], linear=True)
    call = plain(node)
    return replace(call, linear=call.linear or _is_linear(name, node, dependent, shapes))


def _is_linear(name: str, node: Node, dependent: list[bool], shapes: Mapping[Node, torch.Size | None]) -> bool:
    args = node.args
    if name in _PADS:
        values = [*args[_PADS[name] :], *([node.kwargs["value"]] if "value" in node.kwargs else [])]
        return all(each in (None, 0) for each in values)
    if name in _OF_LISTS:  # known tensors among them are constants
        return all(each in shapes for each in _nodes(args[0]))
    if name in _SHIFTS:
        return all(dependent[:2])
    return name in _LINEAR


def _same(x: Any) -> Any:
    return x


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    """``conv2d``; small ones by the plain kernel, which on a CPU takes less than half of the time for few samples."""
    stride, padding, dilation = ([*each] * (2 // len(each)) for each in (stride, padding, dilation))
    products = weight.numel() * x.shape[-1] * x.shape[-2] // (stride[0] * stride[1]) * len(x) // 2
    if x.device.type == "cpu" and groups == 1 and dilation == [1, 1] and products < _SMALL:
        return torch.ops.aten.thnn_conv2d(x, weight, [*weight.shape[2:]], None, stride, padding)
    return torch.ops.aten.conv2d.default(x, weight, None, stride, padding, dilation, groups)


def _written(over: Tensor, x: Tensor) -> Tensor:
    """What ``copy`` gives."""
    return x.to(over.dtype).expand(over.shape)


def _scattered(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """``scatter_add`` of no more of the source than is read."""
    return x.scatter_add(dim, index, source[tuple(slice(length) for length in index.shape)])


def _eps(name: str, args: tuple[Any, ...]) -> Any:
    """``_native_batch_norm_legit_no_training`` has no flag for training, but the same place for its eps otherwise."""
    return args[6] if name == "_native_batch_norm_legit_no_training" else args[7]


def _gain_alone(name: str) -> Callable[..., Any]:
    """A batch norm as the product with its gain, differentiable in the variance too."""

    def scaled(x: Tensor, weight: Tensor | None, variance: Tensor, eps: float) -> Any:
        gain = torch.rsqrt(variance + eps)
        gain = gain if weight is None else gain * weight
        result = x * gain.reshape(-1, *[1] * (x.ndim - 2))
        return result if name == "batch_norm" else (result, None, None)

    return scaled


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _nodes(each)


def _filled(value: Any, values: Mapping[Any, Any]) -> Any:
    """An argument with the values of its nodes; dtypes of floating point and devices are the working ones."""
    if isinstance(value, Node):
        return values[value]
    if isinstance(value, (list, tuple)):
        return [_filled(each, values) for each in value]
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return values[DTYPE]
    return values[DEVICE] if isinstance(value, torch.device) else value
