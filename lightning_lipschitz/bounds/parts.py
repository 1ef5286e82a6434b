"""Which parts of a graph are written out: between nodes that all paths pass, as long as that is
affordable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lightning_lipschitz.certificate.composition import claimed
from lightning_lipschitz.graph import Elementwise, Extremum, Graph, VectorUnits
from lightning_lipschitz.graph.parts import chains, inside, measure, members

LARGEST_ROWS = 800  # units and reduced inputs of a part: some ten seconds of the native solver
LARGEST_SIDE = 2_000  # the smaller side of a part without units
LARGEST_ENTRIES = 20_000_000  # of all its matrices


class Span(NamedTuple):
    """A part: from the output of node ``start`` to that of node ``end``."""

    start: int
    end: int


def cut(graph: Graph) -> tuple[Span, ...]:
    """Parts to write out, each as long as is affordable."""

    def farthest(chain: Sequence[int], last: int) -> int:
        first = last
        while first > 0 and _affordable(graph, chain[first - 1], chain[last]):
            first -= 1
        return first

    return along_chains(graph, farthest, lambda piece: _worthwhile(graph, piece[0], piece[-1]))


def along_chains(
    graph: Graph,
    farthest: Callable[[Sequence[int], int], int],
    worthwhile: Callable[[Sequence[int]], bool],
    taken: Sequence[Span] = (),
) -> tuple[Span, ...]:
    """Parts of the chain to the output, from there backwards; then those of branches that are in none of these.

    Args:
        graph: that is cut.
        farthest: (chain, k) -> where a part that ends at ``chain[k]`` can begin, an index up to k: k itself if nowhere.
        worthwhile: whether a part is wanted, given the piece of a chain that leads through it.
        taken: parts that are there already.
    """
    found: list[Span] = []
    for chain in chains(graph):
        if any(inside(graph, chain, *part) for part in (*taken, *found)):
            continue
        last = len(chain) - 1
        while last > 0:
            first = farthest(chain, last)
            if first < last and worthwhile(chain[first : last + 1]):
                found.append(Span(chain[first], chain[last]))
            last = min(first, last - 1)
    return tuple(sorted(found))


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
