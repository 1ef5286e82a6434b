"""The lowering of a graph, or of a part of it, to explicit matrices, so that the matrix inequality can bound it.

Every node's output is a sum of matrices times sources, plus a bias,

    value = sum_j W_j s_j + b,      s_0 the output of node ``start``, s_k the units of layer k.

Linear nodes multiply and add these matrices; what that rounds is bounded and carried in the terms of the network. Units
begin a layer. Of units whose two slopes are equal nothing is left but that slope: they are affine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from lightning_lipschitz.certificate.expression import Expression, concatenate
from lightning_lipschitz.certificate.floating_point import product_up
from lightning_lipschitz.certificate.matrices import matrix
from lightning_lipschitz.errors import ModelSizeError, NonFiniteError
from lightning_lipschitz.graph import (
    Along,
    Concatenation,
    Convolution,
    Elementwise,
    Extremum,
    Gather,
    Graph,
    Node,
    Scaling,
    Sum,
    VectorUnits,
)
from lightning_lipschitz.graph.arrays import Array, Indices
from lightning_lipschitz.graph.network import Layer, Network
from lightning_lipschitz.graph.parts import members

Evaluate = Callable[[int, Array], Array]

DENSE_ENTRY = 8  # bytes: one float64
SPARSE_ENTRY = 16  # bytes: one float64 and its indices


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the units of a layer are in the graph.

    Attributes:
        node: number of the node.
        entries: the unit number i of the layer is number ``entries[i]`` of the node's.
    """

    node: int
    entries: Indices


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network, and how it hangs together with the graph.

    Attributes:
        network: the matrices.
        origins: where each layer comes from.
        reads: by node of the graph, the sources of the network that it depends on.
    """

    network: Network
    origins: tuple[Origin, ...]
    reads: Mapping[int, frozenset[int]]

    def depends(self, nodes: Iterable[int]) -> frozenset[int]:
        """The sources of the network that any of these nodes depends on."""
        return frozenset[int]().union(*(self.reads.get(number, frozenset()) for number in nodes))


def explicit(graph: Graph, start: int, end: int) -> Network | None:
    """The map from the output of node ``start`` to that of node ``end``, without biases.

    None where there is no such map (a path avoids ``start``), or where products of its matrices overflow.
    """
    if members(graph, start, end) is None:
        return None
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return lower(graph, start, end).network
    except NonFiniteError:
        return None


def lower(
    graph: Graph,
    start: int = 0,
    end: int | None = None,
    *,
    biases: Mapping[int, Array] | None = None,
    evaluate: Evaluate | None = None,
    limit: float = math.inf,
) -> Lowered:
    """The map from the output of node ``start`` to that of node ``end``: by default the whole graph.

    Args:
        graph: which must have such a map.
        start, end: numbers of nodes.
        biases: by node, added to its output.
        evaluate: the number of a node and what its units read, shape (units,) -> what they give, same shape; so that
            biases go through units that are affine or read nothing of the input.
        limit: bytes that the matrices may take.

    Raises:
        ModelSizeError: they would take more, before that memory is asked for.
        NonFiniteError: products of the weights overflow.
    """
    end = len(graph.nodes) - 1 if end is None else end
    walk = _Lowering(graph, start, biases or {}, evaluate or (lambda _, y: np.zeros_like(y)), limit)
    for number in (members(graph, start, end) or ())[1:]:
        walk.visit(number)
    return walk.finished(end)


@dataclass(frozen=True, eq=False)
class _Layer:
    before: Expression
    alpha: Array
    beta: Array
    group: Indices | None
    name: str
    origin: Origin


class _Lowering:
    def __init__(self, graph: Graph, start: int, biases: Mapping[int, Array], evaluate: Evaluate, limit: float) -> None:
        self.graph, self.biases, self.evaluate, self.limit = graph, biases, evaluate, limit
        self.layers, self.entries = list[_Layer](), 0
        width = graph.nodes[start].size
        self.values = {start: Expression.source(0, width)}

    def visit(self, number: int) -> None:
        node = self.graph.nodes[number]
        made = self.value(number, node, [self.values[source] for source in node.sources])
        self.values[number] = made.shift(self.biases[number]) if number in self.biases else made

    def value(self, number: int, node: Node, given: Sequence[Expression]) -> Expression:
        x = given[0]
        if isinstance(node, Elementwise):
            alpha, beta = (np.broadcast_to(each, node.size) for each in (node.alpha, node.beta))
            return self.units(number, x, alpha, beta)
        if isinstance(node, VectorUnits):
            alpha, beta = (np.full(x.size, each) for each in (node.alpha, node.beta))
            after = self.units(number, x, alpha, beta, np.repeat(np.arange(node.vectors), node.width))
            return after.select(np.arange(node.vectors) * node.width) if node.scalar else after
        if isinstance(node, Extremum):  # max(x, y) = x + relu(y - x), min(x, y) = x - relu(x - y)
            minus = np.full(node.size, -1.0)
            apart = x.plus(given[1].scale(minus)) if node.smallest else given[1].plus(x.scale(minus))
            rest = self.units(number, apart, np.zeros(node.size), np.ones(node.size))
            return x.plus(rest.scale(minus) if node.smallest else rest)
        if isinstance(node, Concatenation):
            return concatenate(given)
        return reduce(Expression.plus, given) if isinstance(node, Sum) else self.linear(node, x)

    def linear(self, node: Node, x: Expression) -> Expression:
        if isinstance(node, Gather):
            return x.select(node.indices)
        if isinstance(node, Scaling):
            return x.scale(node.factors, node.relative)
        places = 1  # at which the same matrix, or the same kernel, stands
        if isinstance(node, Along):
            places = node.before * node.after
            self.require_room(SPARSE_ENTRY * places * node.matrix.size, f"`{node.name}`, a matrix at {places} places")
            if places == 1:
                return x.apply(node.matrix, node.rounding)
        elif isinstance(node, Convolution):
            places = math.prod(node.result[1:])
            self.require_room(SPARSE_ENTRY * places * node.kernel.size, f"`{node.name}`, a kernel at {places} places")
        rounding = product_up(1.001, math.sqrt(places), getattr(node, "rounding", 0.0))
        return x.apply(matrix(node, x.size), rounding)

    def units(
        self, number: int, before: Expression, alpha: Array, beta: Array, group: Indices | None = None
    ) -> Expression:
        """A layer; units with alpha == beta become part of the expression instead."""
        if not before.terms:  # nothing here depends on the input
            return Expression({}, self.evaluate(number, before.bias))
        affine = alpha == beta
        offsets = self.evaluate(number, np.zeros(before.size)) if affine.any() else np.zeros(before.size)
        if affine.all():
            return before.scale(alpha).shift(offsets)
        kept, folded = np.flatnonzero(~affine), np.flatnonzero(affine)
        chosen, name = before.select(kept), self.graph.nodes[number].name
        self.entries += sum(math.prod(term.shape) for term in chosen.terms.values())
        self.require_room(DENSE_ENTRY * self.entries, f"the matrices up to `{name}`")
        group = None if group is None else group[kept]
        self.layers.append(_Layer(chosen, alpha[kept], beta[kept], group, name, Origin(number, kept)))
        after = Expression.source(len(self.layers), len(kept))
        if not len(folded):
            return after
        rest = before.select(folded).scale(alpha[folded]).shift(offsets[folded])
        return concatenate([after, rest]).select(np.argsort(np.concatenate([kept, folded])))

    def finished(self, end: int) -> Lowered:
        """Drop the layers that no one reads and number the others."""
        output = self.values[end]
        self.entries += sum(math.prod(term.shape) for term in output.terms.values())
        self.require_room(DENSE_ENTRY * self.entries, "its matrices")
        needed: set[int] = set(output.terms)
        for k in range(len(self.layers), 0, -1):
            if k in needed:
                needed |= set(self.layers[k - 1].before.terms)
        number = {0: 0} | {k: new for new, k in enumerate(sorted(needed - {0}), start=1)}
        width = next(iter(self.values.values())).size
        met = [self.layers[k - 1] for k in number if k]
        layers = tuple(
            Layer(each.before.to_affine(width, number, each.name), each.alpha, each.beta, each.group, each.name)
            for each in met
        )
        network = Network(width, layers, output.to_affine(width, number, "the output"))
        reads = {each: frozenset(number[j] for j in value.terms if j in number) for each, value in self.values.items()}
        return Lowered(network, tuple(each.origin for each in met), reads)

    def require_room(self, size: int, what: str) -> None:
        if size > self.limit:
            raise ModelSizeError(what, size, int(self.limit))
