"""Builder: the graph as it grows, and what it takes to run it: biases, and the functions of units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lightning_lipschitz.extraction.value import Layout, SampleMixing, Value, broadcast
from lightning_lipschitz.graph import Concatenation, Gather, Input, Node
from lightning_lipschitz.graph.arrays import Array, Indices

Function = Callable[[torch.Tensor], torch.Tensor]
Interval: TypeAlias = tuple[Array, Array]


@dataclass(eq=False)
class Builder:
    """Nodes in order; ``biases`` are added to a node's output, ``functions`` are what units compute, ``intervals`` hold
    what nodes give, bias included: those that rules know, and those that were worked out.

    Args:
        batch: number of samples that values speak of.
        input_size: of the flattened input.
    """

    batch: int
    input_size: int
    nodes: list[Node] = field(default_factory=list)
    biases: dict[int, Array] = field(default_factory=dict)
    functions: dict[int, Function] = field(default_factory=dict)
    intervals: dict[int, Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes.append(Input(size=self.input_size))

    def add(
        self,
        node: Node,
        bias: Array | None = None,
        function: Function | None = None,
        values: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    ) -> int:
        """The number of a new node.

        Args:
            node: the new one.
            bias: shape (size,), added to its output.
            function: what it computes, of units.
            values: between which numbers its entries lie, whatever the input; by default it is worked out.
        """
        number = len(self.nodes)
        self.nodes.append(node)
        if bias is not None and np.any(bias):
            self.biases[number] = np.asarray(bias, dtype=np.float64)
        if function is not None:
            self.functions[number] = function
        if values is not None:
            low, high = (np.broadcast_to(np.asarray(each, dtype=np.float64), node.size) for each in values)
            self.intervals[number] = low, high
        return number

    def whole(self, number: int, shape: Sequence[int]) -> Value:
        """A node as a tensor of samples of this shape."""
        return Value.of_shape(number, self.batch, shape)

    def selected(self, value: Value, entries: Indices, bias: Array | None = None) -> int:
        """A node of these entries of the value's node, which may be that node itself; -1 stands for zero."""
        entries = entries.reshape(-1)
        same = len(entries) == value.size and np.array_equal(entries, np.arange(value.size))
        if same and (bias is None or not np.any(bias)):
            return value.node
        return self.add(Gather(sources=(value.node,), indices=entries), bias)

    def ordered(self, value: Value) -> int:
        """A node that holds a sample-first value in its own order."""
        return self.selected(value, value.entries().numpy())

    def compact(self, value: Value) -> Value:
        """The value on a node without entries that it does not show, where there are such."""
        shown = torch.unique(value.index % value.size)
        if len(shown) == value.size:
            return value
        rank = torch.full((value.size,), -1)
        rank[shown] = torch.arange(len(shown))
        number = self.selected(value, shown.numpy())
        sample, entry = value.index // value.size, value.index % value.size
        return Value(number, len(shown), sample * len(shown) + rank[entry], value.batch)

    def samples(self, value: Value) -> tuple[int, Layout]:
        """A node that holds the :meth:`Value.rows` of a value one after the other, and their places."""
        layout = value.rows()
        return self.selected(value, layout.entries), layout

    def laid(self, value: Value, vector: bool = False) -> tuple[int, Layout]:
        """A node that holds the rows of a value one after the other, and their places."""
        layout = value.layout(vector)
        return self.selected(value, layout.entries), layout

    def pair(self, left: Value, right: Value) -> tuple[tuple[int, int], Layout]:
        """Nodes that hold two values, broadcast against each other, in one order, and their places.

        Raises:
            SampleMixing: their samples lie differently.
        """
        (one, layout), (two, other) = (
            self.laid(value.moved(index))
            for value, index in zip((left, right), broadcast(left.index, right.index), strict=True)
        )
        if not torch.equal(layout.positions, other.positions):
            raise SampleMixing
        return (one, two), layout

    def joined(self, values: Sequence[Value]) -> tuple[int, list[torch.Tensor]]:
        """A node that holds the nodes of all values, and the values' indices in it."""
        numbers = list(dict.fromkeys(value.node for value in values))
        sizes = [self.nodes[number].size for number in numbers]
        starts = dict(zip(numbers, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        whole = sum(sizes)
        joint = numbers[0] if len(numbers) == 1 else self.add(Concatenation(sources=tuple(numbers), size=whole))
        return joint, [v.index // v.size * whole + v.index % v.size + starts[v.node] for v in values]
