"""Value: a tensor of the model, with its batch dimension, in terms of one node of the graph.

Which entry of the node sits at which position is an integer tensor of the tensor's own shape, so every operation that
only moves data is carried out by running that very operation on the integers, and makes no node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Indices = npt.NDArray[np.int64]


class SampleMixing(Exception):  # noqa: N818 - control flow: the walk turns it into an ExtractionError
    """An operation whose result for one sample depends on the other samples, or on their number."""


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
        width = self.index.shape[-1] if vector else 1
        shape = self.index.shape[:-1] if vector else self.index.shape
        code = self.index.reshape(-1, width)
        sample, entry = code // self.size, code % self.size
        if len(code) % self.batch or torch.any(sample != sample[:, :1]):
            raise SampleMixing
        order = torch.argsort(sample[:, 0], stable=True).reshape(self.batch, -1)
        entries = entry[order]
        if torch.any(sample[order, 0] != torch.arange(self.batch)[:, None]) or torch.any(entries != entries[:1]):
            raise SampleMixing
        return Layout(entries[0].numpy(), order, shape, self.batch)

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


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of entries, the same for every sample.

    Args:
        entries: shape (rows, width), numbers of entries of the node.
        positions: shape (batch, rows); where the rows of each sample lie in the flattened tensor.
        shape: of that tensor, without its last dimension if the rows are vectors along it.
        batch: the number of samples.
    """

    entries: Indices
    positions: torch.Tensor
    shape: torch.Size
    batch: int

    def place(self, node: int, width: int | None = None) -> Value:
        """A node with ``width`` entries a row (None: a scalar), at the places of the rows."""
        rows = self.positions.shape[1]
        size = rows * (width or 1)
        index = torch.empty(self.batch * rows, width or 1, dtype=torch.int64)
        index[self.positions.reshape(-1)] = torch.arange(self.batch * size).reshape(self.batch * rows, -1)
        return Value(node, size, index.reshape(*self.shape, *(() if width is None else (width,))), self.batch)

    def per_sample(self, constant: torch.Tensor) -> npt.NDArray[np.float64]:
        """A known tensor of the same shape, one sample's worth of it.

        Raises:
            SampleMixing: it is not the same for every sample.
        """
        values = constant.reshape(-1)[self.positions]
        if torch.any(values != values[:1]):
            raise SampleMixing
        return values[0].numpy().astype(np.float64)
