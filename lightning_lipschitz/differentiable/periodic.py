r"""The convolutions of a chain on one torus: symbols with respect to the coarsest of their grids.

A signal on a grid of spacing g, in positions of the input, is seen in T / g phases on the coarse grid of spacing T, the
product of all strides, an axis at a time. A convolution of stride s reads for the output's phase r and tap a the phase
``(s r + a) mod (T / g)`` of its input, ``floor((s r + a) / (T / g))`` coarse positions further, so that it is a matrix
H(w) at each frequency w of the coarse grid: rows (channel, phase) of the output, columns (channel, phase) of the input.

The torus has N coarse positions, so many that no position which a layer reads beyond one edge of its image meets the
image again at the other one. The chain on the image is then that on the torus with all units outside of the image held
at zero. Of units with slopes [0, beta] that adds nothing to M: M of the image is a principal submatrix of that of the
torus, and multipliers of the torus, one a channel, prove their bound for the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.bounds.inequality import Columns
from lightning_lipschitz.certificate.symbols import half
from lightning_lipschitz.differentiable.translations import Indices, Translated, gathered
from lightning_lipschitz.extraction.reading import Known, on_device
from lightning_lipschitz.graph.arrays import Array

FAR = np.iinfo(np.int32).max  # a tap that no kernel has


@dataclass(frozen=True, eq=False)
class _Transformed:
    """Real matrices at positions, shape (positions, columns, rows), transformed and conjugated, as :data:`.Columns`."""

    parts: Tensor
    table: Tensor

    def __call__(self, of_source: Tensor | None, of_result: Tensor | None) -> Tensor:
        parts = self.parts
        columns, rows = parts.shape[1:]
        if of_source is not None:
            parts = parts * of_source.repeat_interleave(columns // len(of_source))[:, None]
        if of_result is not None:
            parts = parts * of_result.repeat_interleave(rows // len(of_result))
        return (self.table @ parts.reshape(len(parts), -1)).reshape(-1, 2, columns, rows)


@dataclass(frozen=True, eq=False)
class Torus:
    """The grids of a chain of convolutions.

    Args:
        pieces: from the input on, at least one.
    """

    pieces: Sequence[Translated]

    @cached_property
    def spacings(self) -> list[tuple[int, ...]]:
        """T / g of the input and of every result, axis by axis: how many phases there are."""
        left = [(1,) * len(self.pieces[-1].stride)]
        for piece in reversed(self.pieces):
            left.insert(0, tuple(s * p for s, p in zip(piece.stride, left[0], strict=True)))
        return left

    @cached_property
    def periods(self) -> tuple[int, ...]:
        """N, axis by axis."""
        needed = [[1] for _ in self.spacings[0]]
        for piece, (phases, after) in zip(self.pieces, pairwise(self.spacings), strict=True):
            for axis, least in enumerate(needed):
                n, m, s = piece.lengths[axis], piece.results[axis], piece.stride[axis]
                length = max(n, n - piece.least[axis], s * (m - 1) + piece.most[axis] + 1)
                least += [-(-length // phases[axis]), -(-m // after[axis])]
        return tuple(max(each) for each in needed)

    @cached_property
    def frequencies(self) -> Indices:
        """Those without the opposites of earlier ones, shape (count, axes)."""
        return next(half(self.periods, math.prod(self.periods)))

    @property
    def work(self) -> float:
        """Operations of a sweep, very roughly."""
        rows = [p.channels[1] * math.prod(phases) for p, phases in zip(self.pieces, self.spacings[1:], strict=True)]
        sizes = [self.pieces[0].channels[0] * math.prod(self.spacings[0]), *rows]
        return 8.0 * len(self.frequencies) * sum(r * r * (r + c) for c, r in pairwise(sizes))

    def columns(self, values: Mapping[Any, Any], matrix: Tensor) -> list[Columns]:
        """Those of all convolutions, and of a matrix on the last image, as :func:`.sweep_frequencies` takes them.

        Args:
            values: of the known nodes.
            matrix: float64, shape (outputs, channels times positions).
        """
        known, found = self._known(matrix.device), []
        for piece, (places, table) in zip(self.pieces, self._gathers, strict=True):
            responses = piece.responses(values).to(matrix)
            found.append(_Transformed(gathered(responses, known(places)), known(table)))
        parts = matrix.reshape(len(matrix), self.pieces[-1].channels[1], -1).permute(2, 1, 0)
        return [*found, _Transformed(parts, known(self._positions))]

    @cached_property
    def _gathers(self) -> list[tuple[Indices, Array]]:
        """For every piece the places of the matrices of its coarse shifts, transposed, shape (shifts, columns, rows),
        and the table that sums them up at every frequency."""
        return [
            self._gather(piece, phases, after)
            for piece, (phases, after) in zip(self.pieces, pairwise(self.spacings), strict=True)
        ]

    def _gather(self, piece: Translated, phases: tuple[int, ...], after: tuple[int, ...]) -> tuple[Indices, Array]:
        axes, taps, shifts = len(phases), [], []
        for s, P, Q, a, b in zip(piece.stride, phases, after, piece.least, piece.most, strict=True):
            own = np.arange(a // P, (s * (Q - 1) + b) // P + 1)
            read = np.arange(P)[None, None, :] + P * own[:, None, None] - s * np.arange(Q)[None, :, None]
            taps.append(np.where((read >= a) & (read <= b), read, FAR))  # other taps that are seen would be zero
            shifts.append(own)
        places = piece.places(taps)  # (shift, phase of the result, that of the source) of every axis, both channels
        per_axis = [list(range(first, 3 * axes, 3)) for first in range(3)]
        order = [*per_axis[0], 3 * axes + 1, *per_axis[2], 3 * axes, *per_axis[1]]
        rows, columns = piece.channels[1] * math.prod(after), piece.channels[0] * math.prod(phases)
        return np.ascontiguousarray(places.transpose(order)).reshape(-1, columns, rows), self._table(shifts)

    @cached_property
    def _positions(self) -> Array:
        opposite = (-self.frequencies % np.array(self.periods) == self.frequencies).all(axis=1)
        weights = np.sqrt(np.where(opposite, 1.0, 2.0) / math.prod(self.periods))
        table = self._table([np.arange(m) for m in self.pieces[-1].results])
        return np.repeat(weights, 2)[:, None] * table

    def _table(self, positions: Sequence[Indices]) -> Array:
        """cos and -sin of ``w . position`` in turns, shape (twice the frequencies, positions of the product)."""
        product = np.array(list(itertools.product(*positions)), dtype=np.int64)
        periods = np.array(self.periods)
        angles = 2.0 * np.pi * ((self.frequencies[:, None] * product[None]) % periods / periods).sum(axis=-1)
        return np.stack([np.cos(angles), -np.sin(angles)], axis=1).reshape(-1, len(product))

    def _known(self, device: torch.device) -> Known:
        if device not in self._copies:
            self._copies[device] = on_device(device)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, Known]:
        return {}
