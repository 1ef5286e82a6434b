"""Which parts of a structured graph are written out: between nodes that all paths pass, as long as that is
affordable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_lipschitz.certificate.composition import claimed
from lightning_lipschitz.structured import Elementwise, Extremum, Graph, VectorUnits
from lightning_lipschitz.structured.parts import chains, inside, measure, members

LARGEST_ROWS = 800  # units and reduced inputs of a part: some ten seconds of the native solver
LARGEST_SIDE = 2_000  # the smaller side of a part without units
LARGEST_ENTRIES = 20_000_000  # of all its matrices


@dataclass(frozen=True, order=True)
class Part:
    """From the output of node ``start`` to that of node ``end``."""

    start: int
    end: int


def cut(graph: Graph) -> tuple[Part, ...]:
    """Parts to write out, from the output backwards, each as long as is affordable; then those of branches that are in
    none of these."""
    parts: list[Part] = []
    for chain in chains(graph):
        if not any(inside(graph, chain, part.start, part.end) for part in parts):
            parts += _along(graph, chain)
    return tuple(sorted(parts))


def _along(graph: Graph, points: Sequence[int]) -> list[Part]:
    parts, last = [], len(points) - 1
    while last > 0:
        first = last
        while first > 0 and _affordable(graph, points[first - 1], points[last]):
            first -= 1
        if first < last and _worthwhile(graph, points[first], points[last]):
            parts.append(Part(points[first], points[last]))
        last = min(first, last - 1)
    return parts


def _affordable(graph: Graph, start: int, end: int) -> bool:
    size = measure(graph, start, end)
    if size is None or size.entries > LARGEST_ENTRIES or not _is_explicit(graph, start, end):
        return False
    return size.rows <= LARGEST_ROWS if size.widths else min(size.inputs, size.outputs) <= LARGEST_SIDE


def _is_explicit(graph: Graph, start: int, end: int) -> bool:
    nodes = (graph.nodes[number] for number in (members(graph, start, end) or ())[1:])
    return not any(
        isinstance(node, (VectorUnits, Extremum))
        or (isinstance(node, Elementwise) and bool(np.any(node.alpha == node.beta)))
        for node in nodes
    )


def _worthwhile(graph: Graph, start: int, end: int) -> bool:
    """Whether there is more than one norm to multiply."""
    return sum(start < number <= end for number in claimed(graph)) > 1
