"""Traced: a tensor of the model, with its batch dimension, in terms of one per-sample expression.

Which entry of the expression sits at which position is an integer tensor of the traced tensor's own shape. So every
operation that only moves data (reshape, permute, slice, cat, expand, flip ...) is carried out by running that very
operation on the integers, and the batch dimension may be anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lightning_lipschitz.extraction.expression import Expression
from lightning_lipschitz.extraction.samples import Rows, SampleMixing, broadcast
from lightning_lipschitz.network import Array


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
        return Layout.of(self.index, self.expression.size, self.batch, vector)

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


class Layout(Rows):
    """Rows of entries of an expression."""

    def select(self, expression: Expression) -> Expression:
        """One sample's entries, row by row."""
        return expression.select(self.entries.reshape(-1))

    def place(self, expression: Expression, width: int | None = None) -> Traced:
        """Put one sample's result, ``width`` entries a row (None: a scalar), back to the places of the rows."""
        return Traced(expression, self.placed(width), len(self.positions))


def aligned(x: Traced, constant: torch.Tensor) -> tuple[Layout, Array]:
    """Broadcast against a known tensor: the layout of ``x`` after it, and the constant per entry."""
    index, constant = broadcast(x.index, constant)
    layout = replace(x, index=index).layout()
    return layout, layout.per_sample(constant)
