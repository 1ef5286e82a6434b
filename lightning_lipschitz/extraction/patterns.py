"""Activations that PyTorch (or a user) writes with several operators, put back together.

``F.softsign(x)`` reaches the graph as ``x / (|x| + 1)``, a quotient of two values that depend on the input; taken apart
like this it would have to be refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

Template = tuple[Any, ...]  # (operator, *arguments); "x" stands for a tensor, other strings for numbers

_SHRINK = ("abs", "x"), ("mul", ("sign", "x"), "lambd")
_TEMPLATES: list[tuple[Callable[..., Any], Template]] = [
    (F.softsign, ("div", "x", ("add", ("abs", "x"), 1))),
    (F.softsign, ("div", "x", ("add", 1, ("abs", "x")))),
    (F.tanhshrink, ("sub", "x", ("tanh", "x"))),
    (F.softshrink, ("where", ("gt", _SHRINK[0], "lambd"), ("sub", "x", _SHRINK[1]), ("mul", "x", 0))),
    (F.hardshrink, ("where", ("le", ("abs", "x"), "lambd"), 0, "x")),
    (F.silu, ("mul", "x", ("sigmoid", "x"))),
    (F.silu, ("mul", ("sigmoid", "x"), "x")),
    (F.mish, ("mul", "x", ("tanh", ("softplus", "x")))),
    (F.mish, ("mul", ("tanh", ("softplus", "x")), "x")),
]
_SIX = ("relu6",), ("clamp", 0, 6), ("hardtanh", 0, 6)
_LOGISTIC = ("add", ("exp", ("neg", "x")), 1), ("add", 1, ("exp", ("neg", "x")))
_EXPONENTIAL = ("add", ("exp", "x"), 1), ("add", 1, ("exp", "x"))
_TEMPLATES += [
    *((F.silu, ("div", "x", each)) for each in _LOGISTIC),
    *((torch.sigmoid, ("reciprocal", each)) for each in _LOGISTIC),
    *((F.softplus, ("log", each)) for each in _EXPONENTIAL),
    (F.softplus, ("log1p", ("exp", "x"))),
    *((F.hardswish, ("div", ("mul", "x", (name, ("add", "x", 3), *ends)), 6)) for name, *ends in _SIX),
    *((F.leaky_relu, ("where", (name, "x", 0), "x", ("mul", "x", "slope"))) for name in ("gt", "ge")),
    *((F.relu, ("where", (name, "x", 0), "x", 0)) for name in ("gt", "ge")),
    *((F.relu, ("mul", "x", (name, "x", 0))) for name in ("gt", "ge")),
    (F.gelu, ("mul", ("mul", "x", 0.5), ("add", ("erf", ("div", "x", 2**0.5)), 1))),
    *((F.hardswish, ("mul", "x", ("div", (name, ("add", "x", 3), *ends), 6))) for name, *ends in _SIX),
    (F.elu, ("where", ("gt", "x", 0), "x", ("mul", ("sub", ("exp", "x"), 1), "alpha"))),
    (F.elu, ("where", ("gt", "x", 0), "x", ("sub", ("exp", "x"), 1))),
    (F.elu, ("where", ("gt", "x", 0), "x", ("expm1", "x"))),
    *((F.relu, ("masked_fill", "x", (name, "x", 0), 0)) for name in ("lt", "le")),
]
_FURTHER = {F.softplus: (1.0, 40.0)}  # past this threshold PyTorch's jump is rounding in float64 too
_OF_TWO = {torch.ops.aten.max.other: torch.ops.aten.maximum.default}
_OF_TWO[torch.ops.aten.min.other] = torch.ops.aten.minimum.default
_CHECKS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)


def operator_name(target: Any) -> str:
    """``aten::relu.default`` -> ``relu``; a Python function's own name."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return str(getattr(target, "__name__", target))


def fuse(graph: torch.fx.Graph) -> None:
    """Rewrite the graph in place, and drop run-time checks and whatever no one reads."""
    for node in reversed(list(graph.nodes)):
        if operator_name(node.target) in _CHECKS:
            graph.erase_node(node)
    for node in graph.nodes:
        if operator_name(node.target) == "broadcast_tensors":
            _take_apart(node)
        if node.target in _OF_TWO:
            node.target = _OF_TWO[node.target]
            continue
        for function, template in _TEMPLATES:
            bound: dict[str, Any] = {}
            if _matches(template, node, bound):
                node.target = function
                node.args = (bound.pop("x"), *bound.values(), *_FURTHER.get(function, ()))
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _take_apart(broadcast: torch.fx.Node) -> None:
    """What has the common shape already stands for itself: a reader of the mean does not read the scale beside it."""
    for user in list(broadcast.users):
        tensors: Any = broadcast.args[0]
        given = tensors[user.args[1]]
        if str(given.meta["val"].shape) == str(user.meta["val"].shape):
            user.replace_all_uses_with(given)


def _matches(template: Any, value: Any, bound: dict[str, Any]) -> bool:
    if isinstance(template, str):
        if isinstance(value, torch.fx.Node) != (template == "x"):
            return False
        if template != "x" and type(value) not in (int, float):
            return False
        return bool(operator.eq(bound.setdefault(template, value), value))
    if not isinstance(template, tuple):
        return not isinstance(value, torch.fx.Node) and bool(value == template)
    if not isinstance(value, torch.fx.Node) or value.op != "call_function" or value.kwargs:
        return False
    if operator_name(value.target) != template[0] or len(value.args) != len(template) - 1:
        return False
    orders = [value.args, value.args[::-1]] if template[0] in ("add", "mul") else [value.args]
    before = dict(bound)
    for arguments in orders:
        bound.clear()
        bound.update(before)
        if all(_matches(each, argument, bound) for each, argument in zip(template[1:], arguments, strict=True)):
            return True
    return False
