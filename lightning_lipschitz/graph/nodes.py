"""The kinds of nodes of a graph, all but the convolution.

A node is a map from the flat outputs of its sources to its own flat output of ``size`` numbers. What it holds is what a
Lipschitz bound depends on: no biases, no names in the digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.errors import ArgumentError, ShapeError
from lightning_lipschitz.graph.arrays import Array, Indices, finite, frozen, frozen_indices
from lightning_lipschitz.real import real_number

Content: TypeAlias = "npt.NDArray[Any] | str"


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """What all kinds share.

    Attributes:
        sources: numbers of the nodes that are read, all of them earlier.
        size: numbers in the output.
        name: where it came from, for messages.
    """

    sources: tuple[int, ...] = ()
    size: int
    name: str = ""

    def expected(self) -> tuple[int, ...] | None:
        """Sizes that the sources must have; None where any will do."""
        return None

    def contents(self) -> Iterator[Content]:
        """Everything but sources and size that a bound depends on, in a fixed order."""
        yield from ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """The flattened input of the model; node 0 and no other."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Along(Node):
    """``matrix`` along one axis: the source is viewed as (before, columns, after), the result as (before, rows, after).

    A linear layer has ``after = 1``; separable maps such as pooling and interpolation are one such node an axis.

    Args:
        matrix: shape (rows, columns).
        before, after: how many entries lie on either side of the axis.
        rounding: the real-arithmetic matrix lies within this Frobenius distance of ``matrix``.
    """

    matrix: Array
    before: int = 1
    after: int = 1
    rounding: float = 0.0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", frozen(self.matrix, f"the matrix of `{self.name}`"))
        if self.matrix.ndim != 2:
            raise ShapeError("a matrix", self.matrix.shape, "2 dimensions")
        object.__setattr__(self, "size", self.before * self.matrix.shape[0] * self.after)
        object.__setattr__(self, "rounding", finite(self.rounding, "rounding"))

    def expected(self) -> tuple[int, ...]:
        return (self.before * self.matrix.shape[1] * self.after,)

    def contents(self) -> Iterator[Content]:
        yield self.matrix
        yield f"{self.before} {self.after} {self.rounding.hex()}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Scaling(Node):
    """Entry ``i`` times ``factors[i]``.

    Args:
        factors: shape (size,).
        relative: the real-arithmetic factors lie within this relative distance.
    """

    factors: Array
    relative: float = 0.0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", frozen(self.factors, f"the factors of `{self.name}`"))
        if self.factors.ndim != 1:
            raise ShapeError("factors", self.factors.shape, "1 dimension")
        object.__setattr__(self, "size", len(self.factors))
        object.__setattr__(self, "relative", finite(self.relative, "relative"))

    def expected(self) -> tuple[int, ...]:
        return (self.size,)

    def contents(self) -> Iterator[Content]:
        yield self.factors
        yield self.relative.hex()


@dataclass(frozen=True, eq=False, kw_only=True)
class Gather(Node):
    """Entry ``i`` is entry ``indices[i]`` of the source, zero where that is -1: permutation, slice, padding, repeat."""

    indices: Indices
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", frozen_indices(self.indices, "indices"))
        object.__setattr__(self, "size", len(self.indices))

    def contents(self) -> Iterator[Content]:
        yield self.indices


@dataclass(frozen=True, eq=False, kw_only=True)
class Elementwise(Node):
    """Units with slopes in [alpha, beta], each acting on its own entry.

    Args:
        alpha, beta: shape () or (size,).
    """

    alpha: Array
    beta: Array

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            values = frozen(getattr(self, name), name)
            if values.shape not in ((), (self.size,)):
                raise ShapeError(name, values.shape, ((), (self.size,)))
            object.__setattr__(self, name, values)
        if np.any(self.alpha > self.beta):
            raise ArgumentError("slopes", (float(np.max(self.alpha)), float(np.min(self.beta))), "alpha <= beta")

    def expected(self) -> tuple[int, ...]:
        return (self.size,)

    def contents(self) -> Iterator[Content]:
        yield self.alpha
        yield self.beta


@dataclass(frozen=True, eq=False, kw_only=True)
class VectorUnits(Node):
    r"""Functions of whole vectors, ``width`` consecutive numbers each: maxima, sorting, softmax, norms.

    What is used of them is, for any two vectors y and y + dy,

    .. math:: \sum_i (dz_i - \alpha\, dy_i)\,(dz_i - \beta\, dy_i) \le 0,

    so that :math:`|dz| \le \max(|\alpha|, |\beta|)\, |dy|`: with c the middle and r half the length of the interval,
    the sum is :math:`|dz - c\,dy|^2 - r^2 |dy|^2`.

    Args:
        alpha, beta: the slopes of every vector, alpha < beta.
        width: numbers in a vector.
        scalar: whether only the first number of every result is given on, because the others are zero.
    """

    alpha: float
    beta: float
    width: int
    scalar: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            object.__setattr__(self, name, real_number(getattr(self, name), name))
        if not (np.isfinite(self.alpha) and np.isfinite(self.beta) and self.alpha < self.beta):
            raise ArgumentError("slopes", (self.alpha, self.beta), "finite numbers alpha < beta")
        if self.width < 1 or self.size % (1 if self.scalar else self.width):
            raise ShapeError("width", self.width, f"a divisor of {self.size}")

    @property
    def vectors(self) -> int:
        """How many there are."""
        return self.size if self.scalar else self.size // self.width

    def expected(self) -> tuple[int, ...]:
        return (self.vectors * self.width,)

    def contents(self) -> Iterator[Content]:
        yield f"{self.alpha.hex()} {self.beta.hex()} {self.width} {self.scalar}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Extremum(Node):
    """The larger of two entries at every place, or the smaller: ``max(x, y) = x + relu(y - x)``.

    No entry moves by more than one of the two that it is made of, so that ``|dz|^2 <= |dx|^2 + |dy|^2``.
    """

    smallest: bool = False

    def expected(self) -> tuple[int, ...]:
        return (self.size, self.size)

    def contents(self) -> Iterator[Content]:
        yield str(self.smallest)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sum(Node):
    """The entrywise sum of the sources."""

    def expected(self) -> tuple[int, ...]:
        return (self.size,) * len(self.sources)


@dataclass(frozen=True, eq=False, kw_only=True)
class Concatenation(Node):
    """The sources one after the other."""
