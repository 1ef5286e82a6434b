"""The walk over a trace: it makes the graph of a model, operator by operator, with the rules of the registry.

Whatever does not depend on the model's input is evaluated as it stands, on the CPU and in float64; see ``constants``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.errors import ExtractionError, LipschitzError
from lightning_lipschitz.extraction.builder import Builder
from lightning_lipschitz.extraction.constants import conversion, double, folded
from lightning_lipschitz.extraction.fold import fold
from lightning_lipschitz.extraction.location import cast_resolution, display_name, line, path
from lightning_lipschitz.extraction.patterns import operator_name
from lightning_lipschitz.extraction.reading import ReadGraph
from lightning_lipschitz.extraction.refusals import refusal, unknown
from lightning_lipschitz.extraction.registry import Context, find_rule, require_finite
from lightning_lipschitz.extraction.rules.movement import lifted
from lightning_lipschitz.extraction.trace import Trace
from lightning_lipschitz.extraction.undisturbed import clean
from lightning_lipschitz.extraction.value import SampleMixing, Value
from lightning_lipschitz.graph import Graph

_EXACT = ("alias", "clone", "detach", "expand", "lift_fresh_copy", "permute", "reshape", "t", "transpose", "view")


def walk(trace: Trace, weights: Mapping[str, torch.Tensor], prefix: str = "", *, folded: bool = True) -> ReadGraph:
    """The graph with these weights.

    Args:
        trace: of the model.
        weights: every tensor that the trace names.
        prefix: dotted name of the model inside a larger one, for messages.
        folded: whether scalings become part of the convolution or the matrix before them.

    Raises:
        UnsupportedModuleError: an operator without a rule.
        ExtractionError: samples of a batch act on each other, or the result is random.
        NonFiniteError: a parameter or a constant holds NaN or infinity.
    """
    steps, output = walked(trace, weights, prefix)
    if folded:
        fold(steps.builder, output)
    return _finished(steps.builder, output, steps.resolution)


def walked(trace: Trace, weights: Mapping[str, torch.Tensor], prefix: str = "") -> tuple[Walk, int]:
    """A walk that has arrived, and the number of the output's node. Arguments and errors as for :func:`walk`."""
    steps = Walk(trace, weights, prefix)
    with torch.no_grad(), torch.autocast("cpu", enabled=False), np.errstate(over="ignore", invalid="ignore"):
        return steps, steps.output(steps.run())


class Walk:
    """One walk.

    Attributes:
        builder: the graph as it grows.
        values: of the nodes of the trace.
        made: the numbers of the nodes of the graph that each operator brought.
    """

    def __init__(self, trace: Trace, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
        self.trace, self.weights, self.prefix = trace, weights, prefix
        self.builder = Builder(trace.batch, int(np.prod(trace.shape)))
        self.values: dict[torch.fx.Node, Any] = {}
        self.made: dict[torch.fx.Node, range] = {}
        self.names: dict[int, str] = {}
        self.resolution = 0.0
        self.name = f"`{prefix}`" if prefix else "the model"

    def run(self) -> Any:
        """The value of the output node."""
        for node in self.trace.nodes:
            if node.op == "output":
                return self.values[node.args[0]]  # type: ignore[index]
            self.values[node] = self.placeholder(node) if node.op == "placeholder" else self.call(node)
        raise ExtractionError(self.name, "its graph has no output.", "")

    def placeholder(self, node: torch.fx.Node) -> Any:
        if node.name == self.trace.inputs:
            return self.builder.whole(0, self.trace.shape)
        name = self.trace.tensors.get(node.name, node.name)
        stored = self.weights[name] if name in self.weights else self.trace.constants[node.name]
        if hasattr(stored, "full_tensor"):
            advice = "Gather it (`full_tensor`) and pass it by name."
            raise ExtractionError(f"`{self.full(name)}`", "it is sharded over processes.", advice)
        tensor = double(stored) if node.name in self.trace.registered else stored.detach().cpu()
        self.names[id(tensor)] = f"`{self.full(name)}`"
        if isinstance(self.weights.get(name), torch.nn.Parameter):
            require_finite(tensor, self.names[id(tensor)])
        return tensor

    def call(self, node: torch.fx.Node) -> Any:
        args, kwargs = self.arguments(node)
        first = len(self.builder.nodes)
        self.resolution = max(self.resolution, cast_resolution(node))
        context = self.context(node)
        traced = sum(isinstance(value, Value) for value in tree_leaves((args, kwargs)))
        rule = find_rule(operator_name(node.target)) if traced else None
        if rule is None:
            self.refuse(node, context, traced)
        try:
            result = rule(context, *args, **kwargs) if rule else self.constant(node, args, kwargs)
            context.refuse_conversion(conversion(node, result, Value, self.trace.dtype))
            self.made[node] = range(first, len(self.builder.nodes))
            return result
        except SampleMixing:
            reason = f"`{context.operator}` lets the samples of a batch act on each other, or depends on their number."
            raise context.refused(reason, "The model must treat every sample on its own.") from None
        except LipschitzError:
            raise
        except Exception as error:
            sentence = f"Its rule does not cover these arguments ({type(error).__name__}: {error})."
            raise context.unsupported("not yet", sentence) from error

    def refuse(self, node: torch.fx.Node, context: Context, traced: int) -> None:
        """Raise for what cannot be evaluated."""
        operator = operator_name(node.target)
        known = refusal(operator, traced) if traced else None
        if known is None and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise context.refused(f"`{operator}` draws random numbers.", "In evaluation mode it must be deterministic.")
        if traced:
            raise context.unsupported(*(known or unknown()))

    def arguments(self, node: torch.fx.Node) -> Any:
        """The positional and the named arguments of an operator, as its rule gets them."""
        return tree_map(self.resolve, (node.args, node.kwargs))

    def resolve(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.values[value]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def constant(self, node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
        result = folded(node, args, kwargs, self.trace.dtype)
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.names[id(result)] = f"the weight computed in `{self.full(path(node))}`"
            if operator_name(node.target) not in _EXACT:
                self.resolution = max(self.resolution, torch.finfo(result.dtype).eps)
        return result

    def context(self, node: torch.fx.Node) -> Context:
        value = node.meta.get("val")
        dtype = value.dtype if isinstance(value, torch.Tensor) else None
        where = self.full(path(node))
        return Context(self.builder, where, display_name(node), line(node), self.names, dtype)

    def full(self, name: str) -> str:
        """A dotted name as the user knows it."""
        return ".".join(part for part in (self.prefix, clean(name)) if part)

    def output(self, value: Any) -> int:
        """The node of one sample's output; the first dimension must count the samples."""
        try:
            if isinstance(value, torch.Tensor):
                value = lifted(Context(self.builder, "", "", ""), value, self.builder.whole(0, self.trace.shape))
            if not value.index.ndim or len(value.index) != self.trace.batch:
                raise SampleMixing
            return self.builder.ordered(value)
        except SampleMixing:
            reason = "the first dimension of its output is not the batch."
            raise ExtractionError(self.name, reason, "Return one row a sample.") from None


def _finished(builder: Builder, output: int, resolution: float) -> ReadGraph:
    """Without the nodes that nobody reads; the output last."""
    needed = {0, output}
    for number in range(output, 0, -1):
        if number in needed:
            needed |= set(builder.nodes[number].sources)
    kept = sorted(needed)
    new = {number: place for place, number in enumerate(kept)}
    nodes = [
        replace(builder.nodes[number], sources=tuple(new[source] for source in builder.nodes[number].sources))
        for number in kept
    ]
    biases = {new[number]: bias for number, bias in builder.biases.items() if number in new}
    functions = {new[number]: function for number, function in builder.functions.items() if number in new}
    return ReadGraph(Graph(tuple(nodes)), biases, functions, resolution)
