"""Where the entries of each sample lie in a tensor of integers that tells entries and samples by one number.

Position ``p`` of such a tensor holds entry ``index[p] % size`` of sample ``index[p] // size``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from lightning_lipschitz.extraction.coefficients import Indices
from lightning_lipschitz.network import Array

SomeRows = TypeVar("SomeRows", bound="Rows")


class SampleMixing(Exception):  # noqa: N818 - control flow: the walk turns it into an ExtractionError
    """An operation whose result for one sample depends on the other samples, or on their number."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of entries, the same for every sample.

    Args:
        entries: shape (rows, width), numbers of entries.
        positions: shape (batch, rows); where the rows of each sample lie in the flattened tensor.
        shape: of that tensor, without its last dimension if the rows are vectors along it.
    """

    entries: Indices
    positions: torch.Tensor
    shape: torch.Size

    @classmethod
    def of(cls: type[SomeRows], index: torch.Tensor, size: int, batch: int, vector: bool = False) -> SomeRows:
        """Where each sample's entries lie; with ``vector``, the last dimension is kept together.

        Raises:
            SampleMixing: the samples differ in more than their values, or one vector holds several samples.
        """
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

    def placed(self, width: int | None = None) -> torch.Tensor:
        """The integers of a result with ``width`` entries a row (None: a scalar), at the places of the rows."""
        batch, rows = self.positions.shape
        index = torch.empty(batch * rows, width or 1, dtype=torch.int64)
        index[self.positions.reshape(-1)] = torch.arange(index.numel()).reshape(index.shape)
        return index.reshape(*self.shape, *(() if width is None else (width,)))

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
