"""Walk a graph with expressions in place of numbers: Graph + weights -> Network.

Whatever does not depend on the model's input is evaluated as it stands, on the CPU and in the model's own dtype: this
is how a parametrised layer (weight norm, spectral norm, orthogonal) becomes the constant weight that its forward uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.errors import ExtractionError, LipschitzError
from lightning_lipschitz.extraction.constants import conversion, double, folded
from lightning_lipschitz.extraction.expression import Expression
from lightning_lipschitz.extraction.location import cast_resolution, display_name, line, path
from lightning_lipschitz.extraction.patterns import operator_name
from lightning_lipschitz.extraction.refusals import refusal, unknown
from lightning_lipschitz.extraction.registry import Activated, Context, find_rule, require_finite
from lightning_lipschitz.extraction.result import Extraction
from lightning_lipschitz.extraction.samples import SampleMixing
from lightning_lipschitz.extraction.trace import Graph
from lightning_lipschitz.extraction.traced import Traced
from lightning_lipschitz.extraction.undisturbed import clean
from lightning_lipschitz.network import Layer, Network

_EXACT = ("alias", "clone", "detach", "expand", "lift_fresh_copy", "permute", "reshape", "t", "transpose", "view")


def interpret(graph: Graph, weights: Mapping[str, torch.Tensor], prefix: str = "") -> Extraction:
    """The network of the graph with these weights.

    Args:
        graph: from ``trace``.
        weights: every tensor that the graph names.
        prefix: dotted name of the model inside a larger one, for messages and for the names of the layers.

    Raises:
        UnsupportedModuleError: an operator without a rule.
        ExtractionError: samples of a batch act on each other, or the result is random.
        NonFiniteError: a parameter or a constant holds NaN or infinity.
    """
    walk = Walk(graph, weights, prefix)
    return _assemble(walk.affine(), walk.layers, int(np.prod(graph.shape)), walk.resolution)


class Walk:
    """One interpretation: the values of the nodes, and the layers as they are met."""

    def __init__(self, graph: Graph, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
        self.graph, self.weights, self.prefix = graph, weights, prefix
        self.values: dict[torch.fx.Node, Any] = {}
        self.names: dict[int, str] = {}
        self.layers: list[Activated] = []
        self.resolution = 0.0
        self.name = f"`{prefix}`" if prefix else "the model"

    def affine(self) -> Expression:
        """Walk; one sample's output."""
        # Where composed weights overflow, NonFiniteError follows.
        with torch.no_grad(), torch.autocast("cpu", enabled=False), np.errstate(over="ignore", invalid="ignore"):
            return self.outputs(self.run())

    def run(self) -> Any:
        """The value of the output node."""
        for node in self.graph.nodes:
            if node.op == "output":
                return self.values[node.args[0]]  # type: ignore[index]
            self.values[node] = self.placeholder(node) if node.op == "placeholder" else self.call(node)
        raise ExtractionError(self.name, "its graph has no output.", "")

    def placeholder(self, node: torch.fx.Node) -> Any:
        if node.name == self.graph.inputs:
            source = Expression.source(0, int(np.prod(self.graph.shape)))
            return Traced.of_shape(source, self.graph.batch, self.graph.shape)
        name = self.graph.tensors.get(node.name, node.name)
        stored = self.weights[name] if name in self.weights else self.graph.constants[node.name]
        if hasattr(stored, "full_tensor"):
            raise ExtractionError(
                f"`{self.full(name)}`",
                "it is sharded over processes.",
                "Gather it (`full_tensor`) and pass it by name.",
            )
        tensor = double(stored) if node.name in self.graph.registered else stored.detach().cpu()
        self.names[id(tensor)] = f"`{self.full(name)}`"
        if isinstance(self.weights.get(name), torch.nn.Parameter):
            require_finite(tensor, self.names[id(tensor)])
        return tensor

    def call(self, node: torch.fx.Node) -> Any:
        args, kwargs = tree_map(self.resolve, (node.args, node.kwargs))
        operator, context = operator_name(node.target), self.context(node)
        self.resolution = max(self.resolution, cast_resolution(node))
        traced = sum(isinstance(value, Traced) for value in tree_leaves((args, kwargs)))
        rule = find_rule(operator) if traced else None
        if rule is None:
            self.refuse(node, context, traced)
        try:
            result = rule(context, *args, **kwargs) if rule else self.fold(node, args, kwargs)
            context.refuse_conversion(conversion(node, result, Traced, self.graph.dtype))
        except SampleMixing:
            reason = f"`{context.operator}` lets the samples of a batch act on each other, or depends on their number."
            raise context.refused(reason, "The model must treat every sample on its own.") from None
        except LipschitzError:
            raise
        except Exception as error:
            sentence = f"Its rule does not cover these arguments ({type(error).__name__}: {error})."
            raise context.unsupported("not yet", sentence) from error
        return result

    def refuse(self, node: torch.fx.Node, context: Context, traced: int) -> None:
        """Raise for what cannot be folded."""
        operator = operator_name(node.target)
        known = refusal(operator, traced) if traced else None
        if known is None and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise context.refused(f"`{operator}` draws random numbers.", "In evaluation mode it must be deterministic.")
        if traced:
            raise context.unsupported(*(known or unknown()))

    def resolve(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.values[value]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def fold(self, node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
        result = folded(node, args, kwargs, self.graph.dtype)
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.names[id(result)] = f"the weight computed in `{self.full(path(node))}`"
            if operator_name(node.target) not in _EXACT:
                self.resolution = max(self.resolution, torch.finfo(result.dtype).eps)
        return result

    def context(self, node: torch.fx.Node) -> Context:
        value = node.meta.get("val")
        dtype = value.dtype if isinstance(value, torch.Tensor) else None
        where, what = self.full(path(node)), display_name(node)
        return Context(where, what, line(node), self.graph.batch, self.layers, self.names, dtype)

    def full(self, name: str) -> str:
        """A dotted name as the user knows it."""
        return ".".join(part for part in (self.prefix, clean(name)) if part)

    def outputs(self, value: Any) -> Expression:
        """One sample's output; the first dimension must count the samples."""
        if isinstance(value, torch.Tensor):
            value = _constant_output(value, self.graph.batch)
        if value.index.ndim and len(value.index) == self.graph.batch:
            code = value.index.reshape(self.graph.batch, -1)
            sample, entry = code // value.expression.size, code % value.expression.size
            if (
                torch.equal(sample, torch.arange(self.graph.batch)[:, None].expand_as(sample))
                and not (entry != entry[0]).any()
            ):
                expression: Expression = value.expression.select(entry[0].numpy())
                self.context(self.graph.nodes[-1]).require_room(expression)
                return expression
        raise ExtractionError(
            self.name, "the first dimension of its output is not the batch.", "Return one row a sample."
        )


def _constant_output(value: torch.Tensor, batch: int) -> Traced:
    """An output that does not depend on the input."""
    expression = Expression({}, value[0].reshape(-1).double().numpy())
    return Traced.of_shape(expression, batch, value.shape[1:])


def numbering(output: Expression, layers: list[Activated]) -> dict[int, int]:
    """Sources as they were met -> sources of the network, without the layers that no one reads."""
    needed: set[int] = set(output.terms)
    for k in range(len(layers), 0, -1):
        if k in needed:
            needed |= set(layers[k - 1].before.terms)
    return {0: 0} | {k: new for new, k in enumerate(sorted(needed - {0}), start=1)}


def _assemble(output: Expression, layers: list[Activated], input_size: int, resolution: float) -> Extraction:
    """Drop the layers that no one reads and number the others."""
    number = numbering(output, layers)
    met = [layers[k - 1] for k in number if k]
    network = Network(
        input_size,
        tuple(
            Layer(m.before.to_affine(input_size, number, m.name), m.units.alpha, m.units.beta, m.units.group, m.name)
            for m in met
        ),
        output.to_affine(input_size, number, "the output"),
    )
    return Extraction(network, tuple(m.units for m in met), resolution)
