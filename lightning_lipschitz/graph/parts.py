"""Parts of a graph: which nodes they hold, where they can begin and end, and how large they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_lipschitz.graph.graph import Graph
from lightning_lipschitz.graph.nodes import Elementwise, Extremum, VectorUnits


def members(graph: Graph, start: int, end: int) -> tuple[int, ...] | None:
    """The nodes that lead from ``start`` to ``end``, both included, in order; None where a path avoids ``start``."""
    found, waiting = {start, end}, [end] if end > start else []
    while waiting:
        sources = graph.nodes[waiting.pop()].sources
        if not sources or min(sources) < start:
            return None
        waiting += [source for source in sources if source not in found]
        found |= set(sources)
    return tuple(sorted(found)) if end > start else None


@dataclass(frozen=True)
class Size:
    """How large the explicit network of a part is.

    Attributes:
        inputs: width of its input.
        widths: of its layers.
        outputs: width of its output.
        entries: of all matrices.
        read: rows that read the input.
    """

    inputs: int
    widths: tuple[int, ...]
    outputs: int
    entries: int
    read: int

    @property
    def rows(self) -> int:
        """Rows of the matrix inequality, after the input has been reduced."""
        return sum(self.widths) + min(self.inputs, self.read)


def chains(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Nodes between which parts can lie, in order: those that all paths from the input to the output pass; then, for
    every branch that a sum or a concatenation reads, those that all paths through it pass, from where it branches off.

    Example:
        >>> from lightning_lipschitz.graph import Along, Input, Sum
        >>> double, again = (Along(sources=(source,), matrix=[[2.0]]) for source in (0, 1))
        >>> chains(Graph((Input(size=1), double, again, Sum(sources=(0, 2), size=1))))
        ((0, 3), (0, 1, 2))
    """
    above: list[int] = [0]  # the last node before each that all paths to it pass
    for node in graph.nodes[1:]:
        common = node.sources[0]
        for source in node.sources[1:]:
            while source != common:
                source, common = (above[source], common) if source > common else (source, above[common])
        above.append(common)
    found = [_chain(above, 0, len(graph.nodes) - 1)]
    for number, node in enumerate(graph.nodes):
        found += [
            _chain(above, above[number], source) for source in dict.fromkeys(node.sources) if len(node.sources) > 1
        ]
    return tuple(chain for chain in dict.fromkeys(found) if len(chain) > 1)


def _chain(above: Sequence[int], start: int, end: int) -> tuple[int, ...]:
    numbers = [end]
    while numbers[-1] > start:
        numbers.append(above[numbers[-1]])
    return tuple(reversed(numbers))


def inside(graph: Graph, chain: Sequence[int], start: int, end: int) -> bool:
    """Whether a chain lies in the part from ``start`` to ``end``."""
    return start <= chain[0] and chain[-1] in (members(graph, start, end) or ())


def measure(graph: Graph, start: int = 0, end: int | None = None) -> Size | None:
    """What a part would be as a network, by counting; None where a path avoids ``start``. The whole graph by default.

    Units on vectors count by what they give: a window of a pooling layer as one.
    """
    end = len(graph.nodes) - 1 if end is None else end
    inside = members(graph, start, end)
    if inside is None:
        return None
    sources: dict[int, frozenset[int]] = {start: frozenset([start])}
    widths, entries, read = [], 0, 0
    for number in inside[1:]:
        node = graph.nodes[number]
        reads = frozenset[int]().union(*(sources[source] for source in node.sources))
        unit = isinstance(node, (Elementwise, VectorUnits, Extremum))
        if unit or number == end:
            entries += node.size * sum(graph.nodes[source].size for source in reads)
            read += node.size if start in reads else 0
        if unit:
            widths.append(node.size)
        sources[number] = frozenset([number]) if unit else reads
    return Size(graph.nodes[start].size, tuple(widths), graph.nodes[end].size, entries, read)
