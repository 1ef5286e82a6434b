"""Graph: what a certificate of a composition speaks about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lightning_lipschitz.digest import digest
from lightning_lipschitz.errors import ArgumentError, ShapeError
from lightning_lipschitz.graph.nodes import Concatenation, Content, Extremum, Gather, Input, Node, Sum


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed acyclic graph of nodes; the last one is the output.

    Args:
        nodes: node 0 is the input; every other reads earlier ones.

    Raises:
        ShapeError: sizes that do not fit.
        ArgumentError: a source that is not an earlier node.

    Example:
        >>> from lightning_lipschitz.graph import Along
        >>> graph = Graph((Input(size=2), Along(sources=(0,), matrix=[[1.0, 1.0]])))
        >>> graph.output.size, graph.input_size
        (1, 2)
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if not self.nodes or [isinstance(node, Input) for node in self.nodes].count(True) != 1:
            raise ArgumentError("nodes", len(self.nodes), "nodes of which the first one, and no other, is the input")
        for number, node in enumerate(self.nodes):
            self._check(number, node)

    def _check(self, number: int, node: Node) -> None:
        if (number == 0) != isinstance(node, Input) or (number == 0) != (node.sources == ()):
            raise ArgumentError("sources", node.sources, "at least one for every node but the input, which comes first")
        if any(not 0 <= source < number for source in node.sources):
            raise ArgumentError("sources", node.sources, f"earlier nodes, 0 to {number - 1}")
        sizes = tuple(self.nodes[source].size for source in node.sources)
        if len(sizes) > 1 and not isinstance(node, (Sum, Concatenation, Extremum)):
            raise ArgumentError("sources", node.sources, f"one node for a {type(node).__name__}")
        expected = node.expected()
        if expected is not None and sizes != expected:
            raise ShapeError(f"what node {number} ({type(node).__name__} `{node.name}`) reads", sizes, expected)
        if isinstance(node, Gather) and np.max(node.indices, initial=-1) >= sizes[0]:
            raise ShapeError(f"what node {number} gathers from", sizes, f"more than {np.max(node.indices)}")
        if isinstance(node, Concatenation) and node.size != sum(sizes):
            raise ShapeError(f"concatenation {number}", node.size, sum(sizes))

    @property
    def output(self) -> Node:
        return self.nodes[-1]

    @property
    def input_size(self) -> int:
        return self.nodes[0].size

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a bound depends on; not of biases and names."""
        return digest(self._contents())

    def _contents(self) -> Iterator[Content]:
        """Everything that a bound depends on; every list after its length."""
        yield f"lightning-lipschitz graph 3 {len(self.nodes)}"
        for node in self.nodes:
            parts = list(node.contents())
            yield f"{type(node).__name__} {node.sources} {node.size} {len(parts)}"
            yield from parts
