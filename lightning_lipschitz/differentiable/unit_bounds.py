"""What an operator that brings units makes of the Lipschitz bounds of its arguments.

The nodes that its rule made are gone through as in ``certificate.composition``. Their constants are read once; those
that are a weight of the operator are looked up at every evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_lipschitz.certificate.operators import needs_proof, node_norm, read_off
from lightning_lipschitz.errors import UnsupportedModuleError
from lightning_lipschitz.extraction.location import display_name, path
from lightning_lipschitz.extraction.patterns import operator_name
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.extraction.walk import Walk
from lightning_lipschitz.graph import Along, Concatenation, Convolution, Elementwise, Extremum, Gather, Scaling, Sum
from lightning_lipschitz.graph import Node as GraphNode

_SLOPES = {"prelu": 1, "_prelu_kernel": 1, "leaky": 1}  # the weight is the slope of one side; where it stands
_GAINS = {"layer_norm": 2, "native_layer_norm": 2, "rms_norm": 2, "_fused_rms_norm": 2, "group_norm": 2}
_GAINS |= {"instance_norm": 1}  # the weight is a factor on what the units give


@dataclass(frozen=True, eq=False)
class UnitBounds:
    """Bounds of the arguments -> bounds of the results.

    Args:
        arguments: nodes of the trace that the operator reads.
        results: nodes of the trace that hold its results, as far as they depend on the model's input.
        factors: of one argument alone: the constants of the results.
        made: of several arguments: what the rule made, see :class:`_Made`.
        weight: the node of the weight that the constants depend on, if one does.
        slope: whether it is the slope of one side of the units, and not a factor.
    """

    arguments: tuple[Node, ...]
    results: tuple[Node, ...]
    factors: tuple[float, ...] | None
    made: _Made
    weight: Node | None
    slope: bool

    def __call__(self, given: Sequence[Tensor], values: Mapping[Any, Any]) -> list[Tensor]:
        """The bounds of the results.

        Args:
            given: those of the arguments.
            values: of the nodes of the trace that are known.
        """
        found = self.made(given) if self.factors is None else [given[0] * factor for factor in self.factors]
        if self.weight is None:
            return found
        steepest = values[self.weight].abs().amax()
        steepest = steepest.clamp(min=1.0) if self.slope else steepest
        return [each * steepest for each in found]


@dataclass(frozen=True, eq=False)
class _Made:
    """The nodes that a rule made, with what is known of the tensors that they were made from.

    Args:
        given: the node that each argument shows; of arguments that show the same one the root of the squares counts.
        nodes: number -> (sources, how these are joined: "sum", "root" of squares or "", the constant after that).
        taken: the node that each result shows, and the root of how often it shows an entry.
    """

    given: tuple[int, ...]
    nodes: Mapping[int, tuple[tuple[int, ...], str, float]]
    taken: tuple[tuple[int, float], ...]

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        arguments: dict[int, list[Tensor]] = {}
        for number, bound in zip(self.given, given, strict=True):
            arguments.setdefault(number, []).append(bound)
        bounds = {number: _root(each) for number, each in arguments.items()}
        for number, (sources, joined, constant) in self.nodes.items():
            known = [bounds[source] for source in sources]
            bounds[number] = (_root(known) if joined == "root" else sum(known[1:], known[0])) * constant
        return [bounds[number] * factor for number, factor in self.taken]


def unit_bounds(steps: Walk, node: Node, results: Sequence[Node]) -> UnitBounds:
    """What an operator that brings units does to bounds.

    Args:
        steps: the walk.
        node: the operator.
        results: nodes of the trace that hold its results.

    Raises:
        UnsupportedModuleError: its constants depend on weights in a way of their own.
    """
    name, nodes = operator_name(node.target), {number: steps.builder.nodes[number] for number in steps.made[node]}
    arguments = tuple(each for each in node.all_input_nodes if isinstance(steps.values[each], Value))
    place = {**_SLOPES, **_GAINS}.get(name)
    weight = None if place is None else (node.args[place] if len(node.args) > place else node.kwargs.get("weight"))
    weight = weight if isinstance(weight, Node) and weight not in arguments else None
    _require_constant(steps, node, nodes, place is not None)
    variable: tuple[type[GraphNode], ...] = () if weight is None else (Elementwise if name in _SLOPES else Scaling,)
    made = _made([steps.values[each] for each in arguments], nodes, [steps.values[each] for each in results], variable)
    ones = [torch.ones((), dtype=torch.float64) for _ in arguments]
    factors = tuple(map(float, made(ones))) if len(arguments) == 1 else None
    return UnitBounds(arguments, tuple(results), factors, made, weight, name in _SLOPES)


def _made(
    arguments: Sequence[Value],
    nodes: Mapping[int, GraphNode],
    results: Sequence[Value],
    variable: tuple[type[GraphNode], ...],
) -> _Made:
    """How bounds of the arguments, tensors that may show entries several times, go through the nodes.

    A gather of them is held against how often the arguments show its entries already; and gathers of one node that are
    joined again are one gather.

    Args:
        arguments, results: of the operator.
        nodes: that its rule made.
        variable: kinds of nodes whose constants are left to others.
    """
    shown: dict[int, Tensor] = {}
    for value in arguments:
        shown[value.node] = shown.get(value.node, torch.zeros(value.size)) + _counts(value)
    found: dict[int, tuple[tuple[int, ...], str, float]] = {}
    for number, each in nodes.items():
        joined, sources = _joined(each), each.sources
        constant = 1.0 if joined or isinstance(each, variable) else _constant(each)
        gathers = [nodes[source] for source in sources if isinstance(nodes.get(source), Gather)]
        parents = {parent for gather in gathers for parent in gather.sources}
        if isinstance(each, Gather) and sources[0] in shown:
            constant = _gathered([each], shown[sources[0]])
        elif joined == "root" and len(gathers) == len(sources) and len(parents) == 1 and parents <= shown.keys():
            sources = tuple(parents)
            constant = _gathered(gathers, shown[sources[0]])
        elif not set(sources).isdisjoint(shown) and not _by_entry(arguments, nodes, results):
            seen = torch.cat([shown[source] for source in sources if source in shown])
            constant /= math.sqrt(seen[seen > 0].min())
        found[number] = sources, joined, constant
    alike = _by_entry(arguments, nodes, results)
    taken = tuple((value.node, 1.0 if alike else math.sqrt(_counts(value).max())) for value in results)
    return _Made(tuple(each.node for each in arguments), found, taken)


def _by_entry(arguments: Sequence[Value], nodes: Mapping[int, GraphNode], results: Sequence[Value]) -> bool:
    """Whether every entry of the result is a function of that entry of the argument, however often they are shown."""
    alone = len(arguments) == len(results) == 1 and all(isinstance(each, Elementwise) for each in nodes.values())
    return alone and torch.equal(arguments[0].index, results[0].index)


def _gathered(gathers: Sequence[GraphNode], shown: Tensor) -> float:
    """The norm of gathers together, of a tensor that shows the entries so often."""
    counts = torch.zeros_like(shown)
    for each in gathers:
        if isinstance(each, Gather):
            indices = torch.from_numpy(each.indices[each.indices >= 0].copy())
            counts += torch.bincount(indices, minlength=len(shown))
    return math.sqrt((counts / shown.clamp(min=1)).max())


def _counts(value: Value) -> Tensor:
    """How often a tensor shows each entry of one sample of its node."""
    first = value.index[value.index < value.size]
    return torch.bincount(first.reshape(-1), minlength=value.size).double()


def _require_constant(steps: Walk, node: Node, nodes: Mapping[int, GraphNode], followed: bool) -> None:
    """Refuse an operator with weights of its own between its units, as a recurrent layer has.

    Raises:
        UnsupportedModuleError: it is one.
    """
    weights = [each for each in tree_leaves(steps.arguments(node)) if isinstance(each, Tensor)]
    scaled = any(isinstance(each, (Scaling, Along, Convolution)) for each in nodes.values())
    if scaled and not followed and any(each.is_floating_point() for each in weights):
        advice = "Its weights act between its own units, and the product bound does not follow them there."
        raise UnsupportedModuleError(steps.full(path(node)), display_name(node), "not yet", advice)


def _joined(node: GraphNode) -> str:
    return "sum" if isinstance(node, Sum) else "root" if isinstance(node, (Concatenation, Extremum)) else ""


def _constant(node: GraphNode) -> float:
    return node_norm(node) if needs_proof(node) else float(read_off(node))


def _root(bounds: Sequence[Tensor]) -> Tensor:
    """The root of the sum of the squares; of all zeros it has the gradient zero."""
    return bounds[0] if len(bounds) == 1 else torch.linalg.vector_norm(torch.stack(list(bounds)))
