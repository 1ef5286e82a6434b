"""Value: a tensor of the model, with its batch dimension, in terms of one node of the graph.

Which entry of the node sits at which position is an integer tensor of the tensor's own shape. So every operation that
only moves data (reshape, permute, slice, cat, expand, flip ...) is carried out by running that very operation on the
integers, makes no node, and the batch dimension may be anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lightning_lipschitz.graph.arrays import Array, Indices


class SampleMixing(Exception):  # noqa: N818 - control flow: the walk turns it into an ExtractionError
    """An operation whose result for one sample depends on the other samples, or on their number."""


@dataclass(frozen=True, eq=False)
class Value:
    """Position ``p`` holds entry ``index[p] % size`` of sample ``index[p] // size``.

    Args:
        node: number of the node.
        size: numbers in the node's output, for one sample.
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

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self.index.shape

    def moved(self, index: torch.Tensor) -> Value:
        """The node's entries in other places."""
        return Value(self.node, self.size, index, self.batch)

    def batch_axis(self) -> int:
        """The dimension that counts the samples.

        Raises:
            SampleMixing: samples are merged with another dimension.
        """
        sample = self.index // self.size
        for axis, length in enumerate(self.shape):
            along = torch.arange(length).reshape(-1, *[1] * (self.index.ndim - axis - 1))
            if length == self.batch and torch.equal(sample, along.expand_as(sample)):
                return axis
        raise SampleMixing

    def layout(self, vector: bool = False) -> Layout:
        """Where each sample's entries lie; with ``vector``, the last dimension is kept together.

        Raises:
            SampleMixing: the samples differ in more than their values, or one vector holds several samples.
        """
        return Layout.of(self.index, self.size, self.batch, vector)

    def rows(self) -> Layout:
        """:meth:`layout` of what the first dimension counts: samples, or parts of samples that were folded into it.

        Such parts are frames, patches and tokens.
        """
        return self.moved(self.index.reshape(len(self.index), -1)).layout(vector=True)

    def entries(self) -> torch.Tensor:
        """One sample's entries, in the shape of one sample; the samples must be the first dimension.

        Raises:
            SampleMixing: they are not.
        """
        if not self.index.ndim or len(self.index) != self.batch:
            raise SampleMixing
        flat = self.index.reshape(self.batch, -1)
        if not torch.equal(flat - flat[0], (self.size * torch.arange(self.batch))[:, None].expand_as(flat)):
            raise SampleMixing
        if bool((self.index[0] >= self.size).any()):
            raise SampleMixing
        return self.index[0]


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of entries of a node, the same for every sample.

    Args:
        entries: shape (rows, width), numbers of entries.
        positions: shape (batch, rows); where the rows of each sample lie in the flattened tensor.
        shape: of that tensor, without its last dimension if the rows are vectors along it.
    """

    entries: Indices
    positions: torch.Tensor
    shape: torch.Size

    @classmethod
    def of(cls, index: torch.Tensor, size: int, batch: int, vector: bool) -> Layout:
        """See :meth:`Value.layout`."""
        width = index.shape[-1] if vector else 1
        shape = index.shape[:-1] if vector else index.shape
        code = index.reshape(-1, width)
        if size % width == 0 and torch.equal(code.reshape(-1), torch.arange(batch * size)):  # already in order
            rows = size // width
            return cls(np.arange(size).reshape(rows, width), torch.arange(batch * rows).reshape(batch, rows), shape)
        sample, entry = code // size, code % size
        if len(code) % batch or torch.any(sample != sample[:, :1]):
            raise SampleMixing
        order = torch.argsort(sample[:, 0], stable=True).reshape(batch, -1)
        entries = entry[order]
        if torch.any(sample[order, 0] != torch.arange(batch)[:, None]) or torch.any(entries != entries[:1]):
            raise SampleMixing
        return cls(entries[0].numpy(), order, shape)

    def place(self, node: int, *shape: int) -> Value:
        """A node with entries of this shape a row (none: a scalar), at the places of the rows."""
        batch, rows = self.positions.shape
        index = torch.empty(batch * rows, math.prod(shape), dtype=torch.int64)
        index[self.positions.reshape(-1)] = torch.arange(index.numel()).reshape(index.shape)
        return Value(node, rows * math.prod(shape), index.reshape(*self.shape, *shape), batch)

    def per_sample(self, constant: torch.Tensor) -> Array:
        """A known tensor of the same shape, one sample's worth of it.

        Raises:
            SampleMixing: it is not the same for every sample.
        """
        values = constant.reshape(-1)[self.positions]
        if torch.any(values != values[:1]):
            raise SampleMixing
        return values[0].numpy().astype(np.float64)


def broadcast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``torch.broadcast_tensors``, typed."""
    return tuple(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]
