"""Value: a tensor of the model, with its batch dimension, in terms of one node of the graph.

Which entry of the node sits at which position is an integer tensor of the tensor's own shape, so every operation that
only moves data is carried out by running that very operation on the integers, and makes no node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lightning_lipschitz.extraction.samples import Rows, SampleMixing


@dataclass(frozen=True, eq=False)
class Value:
    """Position ``p`` holds entry ``index[p] % size`` of sample ``index[p] // size``.

    Args:
        node: number of the node.
        size: of its output, for one sample.
        index: int64, of the shape of the tensor.
        batch: the number of samples that ``index`` speaks of.
        padded: (the value without its padding, the padding as ``F.pad`` takes it), if it was padded circularly.
    """

    node: int
    size: int
    index: torch.Tensor
    batch: int
    padded: tuple[Value, tuple[int, ...]] | None = None

    @classmethod
    def of_shape(cls, node: int, batch: int, shape: Sequence[int]) -> Value:
        """Samples first, entries in order."""
        size = int(np.prod(shape))
        return cls(node, size, torch.arange(batch * size).reshape(batch, *shape), batch)

    def moved(self, index: torch.Tensor) -> Value:
        """The same node's entries in other places."""
        return Value(self.node, self.size, index, self.batch)

    @property
    def in_order(self) -> bool:
        """Whether it is the whole node, sample after sample."""
        flat = self.index.reshape(-1)
        return len(flat) == self.batch * self.size and torch.equal(flat, torch.arange(len(flat)))

    def layout(self, vector: bool = False) -> Layout:
        """Where each sample's entries lie; with ``vector``, the last dimension is kept together.

        Raises:
            SampleMixing: the samples differ in more than their values, or one vector holds several samples.
        """
        return Layout.of(self.index, self.size, self.batch, vector)

    def entries(self) -> torch.Tensor:
        """One sample's entries, in the shape of one sample; the samples must be the first dimension.

        Raises:
            SampleMixing: they are not.
        """
        sample, entry = self.index // self.size, self.index % self.size
        first = torch.arange(self.batch).reshape(-1, *[1] * (self.index.ndim - 1))
        if len(self.index) != self.batch or torch.any(sample != first) or torch.any(entry != entry[:1]):
            raise SampleMixing
        return entry[0]


class Layout(Rows):
    """Rows of entries of a node."""

    def place(self, node: int, width: int | None = None) -> Value:
        """A node with ``width`` entries a row (None: a scalar), at the places of the rows."""
        batch, rows = self.positions.shape
        return Value(node, rows * (width or 1), self.placed(width), batch)
