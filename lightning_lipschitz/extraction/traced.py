"""Traced: a tensor of the model, with its batch dimension, in terms of one per-sample expression.

Which entry of the expression sits at which position is an integer tensor of the traced tensor's own shape. So every
operation that only moves data (reshape, permute, slice, cat, expand, flip ...) is carried out by running that very
operation on the integers, and the batch dimension may be anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lightning_lipschitz.extraction.coefficients import Indices
from lightning_lipschitz.extraction.expression import Expression
from lightning_lipschitz.network import Array


class SampleMixing(Exception):  # noqa: N818 - control flow: the interpreter turns it into an ExtractionError
    """An operation whose result for one sample depends on the other samples, or on their number."""


@dataclass(frozen=True, eq=False)
class Traced:
    """Position ``p`` holds entry ``index[p] % n`` of sample ``index[p] // n``, with n the size of ``expression``.

    Args:
        expression: the same for every sample.
        index: int64, of the shape of the traced tensor.
        batch: the number of samples that ``index`` speaks of.
    """

    expression: Expression
    index: torch.Tensor
    batch: int

    @classmethod
    def of_shape(cls, expression: Expression, batch: int, shape: Sequence[int]) -> Traced:
        """Samples first, entries in order."""
        return cls(expression, torch.arange(batch * expression.size).reshape(batch, *shape), batch)

    def layout(self, vector: bool = False) -> Layout:
        """Where each sample's entries lie; with ``vector``, the last dimension is kept together.

        Raises:
            SampleMixing: the samples differ in more than their values, or one vector holds several samples.
        """
        width = self.index.shape[-1] if vector else 1
        shape = self.index.shape[:-1] if vector else self.index.shape
        code, size = self.index.reshape(-1, width), self.expression.size
        if size % width == 0 and torch.equal(code.reshape(-1), torch.arange(self.batch * size)):  # already in order
            rows = size // width
            positions = torch.arange(self.batch * rows).reshape(self.batch, rows)
            return Layout(np.arange(size).reshape(rows, width), positions, shape)
        sample, entry = code // size, code % size
        if len(code) % self.batch or torch.any(sample != sample[:, :1]):
            raise SampleMixing
        order = torch.argsort(sample[:, 0], stable=True).reshape(self.batch, -1)
        entries = entry[order]
        if torch.any(sample[order, 0] != torch.arange(self.batch)[:, None]) or torch.any(entries != entries[:1]):
            raise SampleMixing
        return Layout(entries[0].numpy(), order, shape)

    def batch_axis(self) -> int:
        """The dimension that counts the samples.

        Raises:
            SampleMixing: samples are merged with another dimension.
        """
        sample = self.index // self.expression.size
        for axis, length in enumerate(self.index.shape):
            along = torch.arange(length).reshape(-1, *[1] * (self.index.ndim - axis - 1))
            if length == self.batch and torch.equal(sample, along.expand_as(sample)):
                return axis
        raise SampleMixing


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of entries, the same for every sample.

    Args:
        entries: shape (rows, width), numbers of entries of the expression.
        positions: shape (batch, rows); where the rows of each sample lie in the flattened tensor.
        shape: of that tensor, without its last dimension if the rows are vectors along it.
    """

    entries: Indices
    positions: torch.Tensor
    shape: torch.Size

    def select(self, expression: Expression) -> Expression:
        """One sample's entries, row by row."""
        return expression.select(self.entries.reshape(-1))

    def place(self, expression: Expression, width: int | None = None) -> Traced:
        """Put one sample's result, ``width`` entries a row (None: a scalar), back to the places of the rows."""
        batch, rows = self.positions.shape
        index = torch.empty(batch * rows, width or 1, dtype=torch.int64)
        index[self.positions.reshape(-1)] = torch.arange(batch * expression.size).reshape(batch * rows, -1)
        return Traced(expression, index.reshape(*self.shape, *(() if width is None else (width,))), batch)

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


def aligned(x: Traced, constant: torch.Tensor) -> tuple[Layout, Array]:
    """Broadcast against a known tensor: the layout of ``x`` after it, and the constant per entry."""
    index, constant = broadcast(x.index, constant)
    layout = replace(x, index=index).layout()
    return layout, layout.per_sample(constant)
