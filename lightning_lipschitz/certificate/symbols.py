r"""The symbol of a convolution: one small matrix a frequency, whose spectral norms bound that of the operator.

1. A convolution that pads with zeros is a compression of one on a torus: embed the image in a torus so large that no
   position of the kernel that reads beyond one edge meets the image again at the other, and let the outputs be some of
   the torus' positions. Embedding and selecting are compressions, so the norm can only grow (for circular padding the
   torus is the image itself). In dimension i, positions ``a <= ... <= b`` are read of an image of length n: a torus of
   ``max(n - a, b + 1)`` will do.
2. With stride s the positions j = s q + r of one remainder r are taken for a channel of their own ("space to depth", an
   isometry), which leaves a convolution of stride one with s times as many channels, on a torus of length / s.
3. On a torus of M positions the Fourier transform makes that block diagonal: the norm is the largest over theta = 2 pi
   j / M of ``|| sum_q K_q exp(i theta q) ||_2`` (Sedghi, Gupta, Long, "The singular values of convolutional layers",
   ICLR 2019).
4. Where these are too many frequencies, a coarser grid: ``u* H(theta) v`` is a trigonometric polynomial, of degree n
   after a shift, and the maximum modulus of one is at most 1 / cos(pi n / G) times the maximum on G > 2 n equidistant
   points (Ehlich, Zeller, "Schwankung von Polynomen zwischen Gitterpunkten", Math. Z. 86, 1964), a dimension at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.certificate.floating_point import TINY, frobenius, gamma, product_up
from lightning_lipschitz.certificate.roots import cosine_below, roots_of_unity
from lightning_lipschitz.graph import Convolution
from lightning_lipschitz.graph.arrays import Array

BUDGET = 1e11  # floating-point operations for all frequencies, some seconds; beyond it the grid is coarser
GRIDS = (96, 64, 48, 32, 24, 16, 12, 8)
OVERHEAD, ENTRY = 6e6, 1.5e3  # operations in the time that one matrix takes at least, and each of its entries
POINTS = (8, 16)  # a degree, of coarser grids
LONGEST_TABLE = 4096  # roots of unity
CHUNK = 2**21  # numbers formed at once


@dataclass(frozen=True, eq=False)
class Symbols:
    """``sum_q parts[g, q] exp(i theta . positions[q])`` for theta on a grid, for every group g.

    Args:
        positions: shape (taps, dimensions).
        parts: shape (groups, taps, rows, columns).
        periods: grid points a dimension.
        excess: the norm of the operator is at most this times the largest norm on the grid.
        rounding: Frobenius distance of the kernel from the real-arithmetic one.
    """

    positions: npt.NDArray[np.int64]
    parts: Array
    periods: tuple[int, ...]
    excess: Fraction
    rounding: float

    @classmethod
    def of(cls, node: Convolution) -> Symbols:
        """The symbols to look at; a function of the node alone, so that a proof can be repeated."""
        positions, parts = _polyphase(node)
        rows = parts.shape[2:]
        torus = _torus(node, positions)
        if math.lcm(*torus) <= LONGEST_TABLE and _work(torus, rows, len(parts)) <= BUDGET:
            return cls(positions, parts, torus, Fraction(1), node.rounding)
        shifted, degrees = _degrees(positions)
        usable = [size for size in GRIDS if size > 2 * max(degrees)] or [4 * max(degrees)]
        grids = [tuple(size if degree else 1 for degree in degrees) for size in usable]
        chosen = next((grid for grid in grids if _work(grid, rows, len(parts)) <= BUDGET), grids[-1])
        return cls(shifted, parts, chosen, _excess(degrees, chosen), node.rounding)

    @classmethod
    def levels(cls, node: Convolution) -> list[Symbols]:
        """Symbols on grids of :data:`POINTS`, the coarsest first, where they halve what :meth:`of` looks at; then that.

        With 8 points a degree the norm may be over-estimated by 1 / cos(pi / 8) = 1.083 an axis, with 16 by 1.02.
        """
        finest = cls.of(node)
        shifted, degrees = _degrees(finest.positions)
        grids = [tuple(points * degree or 1 for degree in degrees) for points in POINTS]
        coarser = [
            cls(shifted, finest.parts, grid, _excess(degrees, grid), node.rounding)
            for grid in grids
            if 2 * math.prod(grid) <= finest.frequencies and math.lcm(*grid) <= LONGEST_TABLE
        ]
        return [*coarser, finest]

    @classmethod
    def on(cls, node: Convolution, periods: tuple[int, ...]) -> Symbols:
        """The symbols on a given torus, which must be at least as large as :meth:`needed`."""
        return cls(*_polyphase(node), periods, Fraction(1), node.rounding)

    @staticmethod
    def needed(node: Convolution) -> tuple[int, ...]:
        """The smallest torus that will do, its length divided by the stride, axis by axis."""
        periods = []
        for axis, (n, s, m, k) in enumerate(zip(node.lengths, node.stride, node.result[1:], node.taps, strict=True)):
            ends = [ends for tap in range(k) if (ends := node.reached(axis, tap)) is not None] or [(0, 0)]
            length = max(n - min(a for a, _ in ends), max(b for _, b in ends) + 1, s * (m - 1) + 1)
            circle = n // s if not n % s else n
            periods.append(circle if node.circular else -(-length // s))
        return tuple(periods)

    @property
    def frequencies(self) -> int:
        """Points of the grid."""
        return math.prod(self.periods)

    @property
    def work(self) -> float:
        """Operations that take as long as testing all frequencies: those of :func:`_work`, and what surrounds them."""
        groups, (rows, columns) = len(self.parts), self.parts.shape[2:]
        around = OVERHEAD + ENTRY * rows * columns if min(rows, columns) > 1 else 0.0
        return _work(self.periods, (rows, columns), groups) + 0.5 * self.frequencies * groups * around

    def slack(self, group: int) -> float:
        """How far, in the Frobenius norm, the matrices that :meth:`embedded` forms may be from exact."""
        taps, rows, columns = self.parts.shape[1:]
        mass = frobenius(np.abs(self.parts[group]).sum(axis=0))
        formed: float = 2.02 * gamma(taps + 2) * mass + 4 * taps * rows * columns * TINY
        return formed + product_up(1.5, math.sqrt(taps), self.rounding)  # 1.5 > sqrt(2): every number occurs twice

    def values(self, group: int) -> Iterator[tuple[Array, Array]]:
        """Real and imaginary parts, shape (frequencies, rows, columns), some frequencies at a time.

        Kernels are real, so of two opposite frequencies one will do.
        """
        for frequencies in half(self.periods, max(1, CHUNK // math.prod(self.parts.shape[2:]))):
            yield self.at(group, frequencies)

    def at(self, group: int, frequencies: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """Real and imaginary parts at given points of the grid, shape (count, dimensions)."""
        length = math.lcm(*self.periods)
        cosine, sine = roots_of_unity(length)
        steps = np.array([length // period for period in self.periods], dtype=np.int64)
        phases = ((frequencies * steps) @ self.positions.T) % length
        flat, shape = self.parts[group].reshape(self.parts.shape[1], -1), (len(frequencies), *self.parts.shape[2:])
        return (cosine[phases] @ flat).reshape(shape), (sine[phases] @ flat).reshape(shape)

    def embedded(self, group: int) -> Iterator[Array]:
        """[[Re, -Im], [Im, Re]], which has the singular values of Re + i Im, each twice."""
        for real, imaginary in self.values(group):
            for a, b in zip(real, imaginary, strict=True):
                yield np.block([[a, -b], [b, a]])

    def embedded_at(self, frequency: npt.NDArray[np.int64]) -> Array:
        """The symbol of the first group at one point of the grid, embedded as a real matrix."""
        real, imaginary = self.at(0, frequency[None])
        return np.block([[real[0], -imaginary[0]], [imaginary[0], real[0]]])


def _polyphase(node: Convolution) -> tuple[npt.NDArray[np.int64], Array]:
    """Positions and matrices of the convolution of stride one; taps that read nothing but padding are left out."""
    groups, (rows, columns) = node.groups, node.kernel.shape[:2]
    kernel = node.kernel.reshape(groups, rows // groups, columns, -1)
    stride = [1 if node.circular and n % s else s for n, s in zip(node.lengths, node.stride, strict=True)]
    parts: dict[tuple[int, ...], Array] = {}
    for number, tap in enumerate(itertools.product(*(range(k) for k in node.taps))):
        if any(node.reached(axis, t) is None for axis, t in enumerate(tap)):
            continue
        geometry = zip(node.dilation, tap, node.padding, stride, strict=True)
        place = [divmod(d * t - before, s) for d, t, (before, _), s in geometry]
        position, remainder = tuple(q for q, _ in place), tuple(r for _, r in place)
        part = parts.setdefault(position, np.zeros((groups, rows // groups, columns, math.prod(stride))))
        part[..., np.ravel_multi_index(remainder, stride)] = kernel[..., number]  # no two taps share a place
    if not parts:
        return np.zeros((1, node.dims), dtype=np.int64), np.zeros((groups, 1, rows // groups, columns))
    stacked = np.stack(list(parts.values()), axis=1)
    return np.array(list(parts), dtype=np.int64), stacked.reshape(*stacked.shape[:3], -1)


def _torus(node: Convolution, positions: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Length / stride of the torus; 1 where the symbol does not depend on the frequency."""
    fixed = np.ptp(positions, axis=0) == 0
    varying = [1 if same else period for same, period in zip(fixed, Symbols.needed(node), strict=True)]
    if math.lcm(*varying) > LONGEST_TABLE and not node.circular:  # a larger torus is as good
        varying = [period if period == 1 else max(varying) for period in varying]
    return tuple(varying)


def _work(periods: tuple[int, ...], shape: tuple[int, ...], groups: int) -> float:
    """Operations to test all frequencies: a Gram matrix and a Cholesky factorisation, both real, of twice the size."""
    small, large = min(shape), max(shape)
    each = 8.0 * small * small * large + (2.0 * small) ** 3 / 3.0 + (3e5 if small > 1 else 0.0)
    return 0.5 * math.prod(periods) * groups * each


def _degrees(positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Positions in units of their greatest common divisor (theta is continuous), and the degrees of the polynomials."""
    shifted = positions - positions.min(axis=0)
    shifted //= np.maximum(np.gcd.reduce(shifted, axis=0), 1)
    return shifted, [-(-int(span) // 2) for span in shifted.max(axis=0)]


def _excess(degrees: Sequence[int], grid: Sequence[int]) -> Fraction:
    """What the maximum on the grid may be exceeded by."""
    excess = Fraction(1)
    for degree, size in zip(degrees, grid, strict=True):
        if degree:
            excess /= cosine_below(degree, 2 * size)
    return excess


def half(periods: tuple[int, ...], chunk: int) -> Iterator[npt.NDArray[np.int64]]:
    """The grid's indices without the opposites of earlier ones, shape (at most ``chunk``, dimensions)."""
    indices = np.stack([axis.reshape(-1) for axis in np.indices(periods)], axis=1)
    opposite = np.ravel_multi_index(list((-indices % np.array(periods)).T), periods)
    kept = indices[np.arange(len(indices)) <= opposite]
    for start in range(0, len(kept), chunk):
        yield kept[start : start + chunk]
