"""Parts of a structured graph: which nodes they hold, where they can begin and end, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_lipschitz.structured.graph import Graph
from lightning_lipschitz.structured.nodes import Bounded, Elementwise


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
    """Of a part's explicit network.

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
        """Of the matrix inequality, after the input has been reduced."""
        return sum(self.widths) + min(self.inputs, self.read)


def passed(graph: Graph) -> tuple[int, ...]:
    """The nodes that every path from the input to the output goes through.

    No edge leads from before such a node to behind it.

    Example:
        >>> from lightning_lipschitz.structured import Along, Input, Sum
        >>> double = Along(sources=(0,), matrix=[[2.0]])
        >>> passed(Graph((Input(size=1), double, Sum(sources=(0, 1), size=1))))
        (0, 2)
    """
    reach, found = 0, [0]
    last_reader = [0] * len(graph.nodes)
    for number, node in enumerate(graph.nodes):
        for source in node.sources:
            last_reader[source] = max(last_reader[source], number)
    for number in range(1, len(graph.nodes)):
        reach = max(reach, last_reader[number - 1])
        if reach <= number:
            found.append(number)
    return tuple(found)


def measure(graph: Graph, start: int = 0, end: int | None = None) -> Size | None:
    """What a part would be as a network, by counting; None where a path avoids ``start``. The whole graph by default.

    Every :class:`Bounded` node counts as a layer.
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
        unit = isinstance(node, (Elementwise, Bounded))
        if unit or number == end:
            entries += node.size * sum(graph.nodes[source].size for source in reads)
            read += node.size if start in reads else 0
        if unit:
            widths.append(node.size)
        sources[number] = frozenset([number]) if unit else reads
    return Size(graph.nodes[start].size, tuple(widths), graph.nodes[end].size, entries, read)
