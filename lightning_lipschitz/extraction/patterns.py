"""Activations that PyTorch (or a user) writes with several operators, put back together.

``F.softsign(x)`` reaches the graph as ``x / (|x| + 1)``, a quotient of two values that depend on the input; taken apart
like this it would have to be refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from lightning_lipschitz.extraction.templates import TEMPLATES

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


def fuse(graph: torch.fx.Graph, given: torch.fx.Node) -> None:
    """Rewrite the graph in place, and drop run-time checks and whatever no one reads.

    Args:
        graph: of the model.
        given: the placeholder of its input.
    """
    for node in reversed(list(graph.nodes)):
        if operator_name(node.target) in _CHECKS:
            graph.erase_node(node)
    matcher = _Matcher(given)
    for node in graph.nodes:
        if operator_name(node.target) == "broadcast_tensors":
            _take_apart(node)
        if node.target in _OF_TWO:
            node.target = _OF_TWO[node.target]
            continue
        matcher.follow(node)
        for written in TEMPLATES:
            found: dict[str, Any] = {}
            if matcher.matches(written.template, node, found):
                x = found.pop("x")
                arguments = written.arguments(**{name.removeprefix("*"): value for name, value in found.items()})
                if arguments is not None:
                    node.target, node.args = written.function, (x, *arguments)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _take_apart(broadcast: torch.fx.Node) -> None:
    """What has the common shape already stands for itself: a reader of the mean does not read the scale beside it."""
    for user in list(broadcast.users):
        tensors: Any = broadcast.args[0]
        given = tensors[user.args[1]]
        if str(given.meta["val"].shape) == str(user.meta["val"].shape):
            user.replace_all_uses_with(given)


class _Matcher:
    """Compares nodes with templates.

    Args:
        given: the placeholder of the input.
    """

    def __init__(self, given: torch.fx.Node) -> None:
        self._depends = {given}

    def follow(self, node: torch.fx.Node) -> None:
        """Note whether a node depends on the input; its arguments come first."""
        if not self._depends.isdisjoint(node.all_input_nodes):
            self._depends.add(node)

    def matches(self, template: Any, value: Any, found: dict[str, Any]) -> bool:
        """Whether a value is written as the template says; ``found``: what its strings stand for."""
        if isinstance(template, str):
            return self._stands(template, value) and bool(operator.eq(found.setdefault(template, value), value))
        if not isinstance(template, tuple):
            return not isinstance(value, torch.fx.Node) and bool(value == template)
        if not isinstance(value, torch.fx.Node) or value.op != "call_function" or value.kwargs:
            return False
        if operator_name(value.target) != template[0] or len(value.args) != len(template) - 1:
            return False
        orders = [value.args, value.args[::-1]] if template[0] in ("add", "mul") else [value.args]
        before = dict(found)
        for arguments in orders:
            found.clear()
            found.update(before)
            pairs = zip(template[1:], arguments, strict=True)
            if all(self.matches(each, argument, found) for each, argument in pairs):
                return True
        return False

    def _stands(self, name: str, value: Any) -> bool:
        number, node = type(value) in (int, float), isinstance(value, torch.fx.Node)
        if name == "x":
            return node
        if name == "known":
            return number or (node and value not in self._depends)
        return not node if name.startswith("*") else number
