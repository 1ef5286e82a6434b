"""The convolution node: kernel and geometry, in any number of dimensions, forwards or as its own adjoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lightning_lipschitz.errors import ArgumentError, ShapeError
from lightning_lipschitz.graph.arrays import Array, finite, frozen
from lightning_lipschitz.graph.nodes import Content, Node


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(Node):
    r"""A cross-correlation, as deep learning calls a convolution, or its adjoint.

    .. math::

        y_{c}[o] = \sum_{c', t} K_{c c' t}\; x_{c'}[s\, o + d\, t - p], \qquad 0 \le o < m,

    with x zero (or periodic, if ``circular``) outside of the image. ``transposed`` is the adjoint of this map, which is
    what a transposed convolution computes; its norm is the same.

    Args:
        kernel: shape (rows, columns / groups, *taps).
        image: (columns, *lengths), of x.
        stride, dilation: one number a dimension.
        padding: (before, after) for every dimension.
        groups: blocks of channels that do not see each other.
        circular: whether x is continued periodically.
        transposed: whether the map goes from y to x.
        rounding: the real-arithmetic kernel lies within this Frobenius distance.
    """

    kernel: Array
    image: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    circular: bool = False
    transposed: bool = False
    rounding: float = 0.0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", frozen(self.kernel, f"the kernel of `{self.name}`"))
        object.__setattr__(self, "rounding", finite(self.rounding, "rounding"))
        for name in ("image", "stride", "dilation"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        object.__setattr__(self, "padding", tuple((int(a), int(b)) for a, b in self.padding))
        self._check()
        object.__setattr__(self, "size", math.prod(self.image) if self.transposed else math.prod(self.result))

    def _check(self) -> None:
        dims, rows = self.dims, self.kernel.shape[0]
        if dims < 1 or not len(self.image) - 1 == len(self.stride) == len(self.padding) == len(self.dilation) == dims:
            raise ShapeError("a kernel", self.kernel.shape, f"{len(self.image) - 1} dimensions besides the channels")
        if rows % self.groups or self.kernel.shape[1] * self.groups != self.image[0]:
            raise ShapeError("a kernel", self.kernel.shape, f"{self.image[0]} channels in {self.groups} groups")
        if min(*self.stride, *self.dilation, self.groups) < 1 or min(min(pair) for pair in self.padding) < 0:
            raise ArgumentError("stride, dilation, padding", (self.stride, self.dilation, self.padding), "positive")
        if min(self.result) < 1:
            raise ShapeError("an image", self.image, "at least one position of the kernel")
        periods = zip(self.lengths, self.result[1:], self.stride, self.taps, self.dilation, strict=True)
        if self.circular and any(max(s * (m - 1), d * (k - 1)) >= n for n, m, s, k, d in periods):
            raise ArgumentError("padding", self.padding, "so small that neither outputs nor taps of a circle meet")

    @property
    def dims(self) -> int:
        return self.kernel.ndim - 2

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the image, without its channels."""
        return self.image[1:]

    @property
    def taps(self) -> tuple[int, ...]:
        return self.kernel.shape[2:]

    @property
    def result(self) -> tuple[int, ...]:
        """(channels, *lengths) of y."""
        geometry = zip(self.lengths, self.padding, self.taps, self.dilation, self.stride, strict=True)
        spatial = ((n + a + b - d * (k - 1) - 1) // s + 1 for n, (a, b), k, d, s in geometry)
        return (self.kernel.shape[0], *spatial)

    def expected(self) -> tuple[int, ...]:
        return (math.prod(self.result) if self.transposed else math.prod(self.image),)

    def contents(self) -> Iterator[Content]:
        yield self.kernel
        geometry = (self.image, self.stride, self.padding, self.dilation)
        yield f"{geometry} {self.groups} {self.circular} {self.transposed} {self.rounding.hex()}"

    def reached(self, axis: int, tap: int) -> tuple[int, int] | None:
        """First and last position of the image, padding included, that a tap reads while some position is inside it.

        None where the tap reads zeros only, so that it plays no part.
        """
        s, n = self.stride[axis], self.lengths[axis]
        offset = self.dilation[axis] * tap - self.padding[axis][0]
        positions = offset + s * np.arange(self.result[1 + axis])
        inside = bool(np.any((positions >= 0) & (positions < n)))
        return (int(positions[0]), int(positions[-1])) if inside or self.circular else None
