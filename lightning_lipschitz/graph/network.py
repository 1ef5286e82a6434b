"""Network: what a certificate speaks about.

A feed-forward directed acyclic graph of affine maps and units with bounded slopes, flattened to vectors. With
``s_0 = x`` the input and ``s_k = z_k`` the output of layer ``k`` (k = 1 ... K),

    y_k = sum_j W_kj s_j + b_k   (j < k),      z_k = phi_k(y_k),      f = sum_j W_j s_j + b,

and what is known of the units is, for any two inputs and for every group ``g`` of units of a layer,

    sum over i in g of  (dz_i - alpha_i dy_i) (dz_i - beta_i dy_i)  <=  0.                                      (1)

An elementwise activation with slopes in [alpha_i, beta_i] satisfies (1) with every unit its own group. A block that
only keeps its l2 norm bounded, ``|dz_g| <= kappa |dy_g|`` (sorting, softmax), satisfies it as one group with
alpha = -kappa and beta = kappa.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.digest import digest
from lightning_lipschitz.errors import ArgumentError, EmptyNetworkError, ShapeError
from lightning_lipschitz.graph.arrays import Array, Indices, finite, frozen
from lightning_lipschitz.real import real_array, whole_array


@dataclass(frozen=True, eq=False)
class Term:
    """``matrix @ s_source``, one summand of an affine map.

    Args:
        source: 0 for the network input, k for the output of layer k.
        matrix: shape (rows, width of the source).
        rounding: the real-arithmetic matrix lies within this Frobenius distance of ``matrix``. Zero when the matrix was
            read and not computed; composing affine maps in floating point makes it positive.
    """

    source: int
    matrix: Array
    rounding: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", frozen(self.matrix, "a weight matrix", 2))
        object.__setattr__(self, "rounding", finite(self.rounding, "rounding"))


@dataclass(frozen=True, eq=False)
class Affine:
    """A sum of terms plus ``bias``. Global bounds do not depend on the bias; it is kept so that the network can be
    run."""

    terms: tuple[Term, ...]
    bias: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "bias", frozen(self.bias, "a bias", 1))
        if len({term.source for term in self.terms}) != len(self.terms):
            raise ArgumentError("terms", [term.source for term in self.terms], "terms with distinct sources")
        for term in self.terms:
            if term.matrix.shape[0] != self.size:
                raise ShapeError("a weight matrix", term.matrix.shape, f"{self.size} rows, as many as the bias")

    @property
    def size(self) -> int:
        return len(self.bias)


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine map followed by units with slopes in [alpha, beta].

    Args:
        affine: the map that gives the pre-activations y, of n units.
        alpha: lower slopes, shape (n,); every unit alpha < beta (a unit with alpha == beta is affine: fold it away).
        beta: upper slopes, shape (n,).
        group: shape (n,); units with the same number satisfy (1) only jointly. By default every unit stands alone.
        name: where it came from, for messages.
    """

    affine: Affine
    alpha: Array
    beta: Array
    group: Indices | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            values = np.broadcast_to(real_array(getattr(self, name), name), (self.size,))
            object.__setattr__(self, name, frozen(values, name, 1))
        if not np.all(self.alpha < self.beta):
            worst = int(np.argmax(self.alpha - self.beta))
            found = (float(self.alpha[worst]), float(self.beta[worst]))
            raise ArgumentError("slopes", found, "an interval with alpha < beta (fold affine units into the weights)")
        object.__setattr__(self, "group", self._frozen_group())

    def _frozen_group(self) -> Indices:
        group = np.arange(self.size) if self.group is None else whole_array(self.group, "group")
        if group.shape != (self.size,):
            raise ShapeError("group", group.shape, (self.size,))
        group.setflags(write=False)
        return group

    @property
    def size(self) -> int:
        return self.affine.size

    @property
    def elementwise(self) -> bool:
        """Whether every unit has a multiplier of its own."""
        return len(np.unique(np.asarray(self.group))) == self.size


@dataclass(frozen=True, eq=False)
class Network:
    """The network of this module's docstring. Immutable; arrays are read-only float64.

    Args:
        input_size: length of the flattened input.
        layers: in topological order; layer k (from 1) may read sources 0 ... k-1.
        output: the final affine map.

    Raises:
        ShapeError: matrices that do not chain.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> network = Network.from_weights([[[1.0], [1.0]], [[1.0, -1.0]]])
        >>> network.sizes, network.num_units, network.is_chain
        ((1, 2), 2, True)
    """

    input_size: int
    layers: tuple[Layer, ...]
    output: Affine

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for k, affine in enumerate(self.affines, start=1):
            for term in affine.terms:
                if not 0 <= term.source < k:
                    raise ArgumentError("source", term.source, f"an earlier source, 0 to {k - 1}")
                if term.matrix.shape[1] != self.sizes[term.source]:
                    what = f"the weight matrix from source {term.source} to layer {k}"
                    raise ShapeError(what, term.matrix.shape, f"{self.sizes[term.source]} columns")

    @classmethod
    def from_weights(
        cls,
        weights: Sequence[npt.ArrayLike],
        biases: Sequence[npt.ArrayLike] | None = None,
        slopes: tuple[float, float] = (0.0, 1.0),
    ) -> Network:
        """A chain ``W_K phi( ... phi(W_1 x + b_1))`` with the same slope interval for every unit.

        Args:
            weights: 2-D matrices, shape (outputs, inputs), first layer first.
            biases: one vector a matrix; zeros by default.
            slopes: (alpha, beta); [0, 1] covers ReLU, tanh and the like.

        Raises:
            EmptyNetworkError, ShapeError, NonFiniteError, ArgumentError.
        """
        if len(weights) == 0:
            raise EmptyNetworkError
        affines: list[Affine] = []
        for k, weight in enumerate(weights):
            matrix = frozen(weight, f"weight matrix {k}", 2)
            if k and matrix.shape[1] != affines[-1].size:
                raise ShapeError(
                    f"weight matrix {k}", matrix.shape, f"{affines[-1].size} columns, the rows of the one before"
                )
            bias = frozen(np.zeros(len(matrix)) if biases is None else biases[k], "a bias", 1)
            affines.append(Affine((Term(k, matrix),), bias))
        alpha, beta = (real_array(slope, "slopes") for slope in slopes)
        layers = tuple(Layer(a, alpha, beta, name=f"layer {k}") for k, a in enumerate(affines[:-1], 1))
        return cls(affines[0].terms[0].matrix.shape[1], layers, affines[-1])

    @property
    def affines(self) -> tuple[Affine, ...]:
        """The affine map of every layer, then the output's."""
        return (*(layer.affine for layer in self.layers), self.output)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the sources: the input, then every layer."""
        return (self.input_size, *(layer.size for layer in self.layers))

    @property
    def num_units(self) -> int:
        return sum(self.sizes[1:])

    @property
    def is_chain(self) -> bool:
        """Whether every map reads only the source just before it."""
        return all([t.source for t in affine.terms] == [k] for k, affine in enumerate(self.affines))

    def wide(self, affine: Affine) -> Array:
        """One of its affine maps as one matrix over all sources (x, z_1, ..., z_K)."""
        matrices = {term.source: term.matrix for term in affine.terms}
        zeros = ((j, np.zeros((affine.size, size))) for j, size in enumerate(self.sizes) if j not in matrices)
        return np.hstack([matrix for _, matrix in sorted((matrices | dict(zeros)).items())])

    def rows(self) -> Array:
        """[A; C]: the maps of all layers and of the output below each other, over all sources."""
        return np.vstack([self.wide(affine) for affine in self.affines])

    def with_matrices(self, matrices: Mapping[tuple[int, int], npt.ArrayLike]) -> Network:
        """The network with other matrices where its terms stand; slopes, groups, biases and names stay.

        Args:
            matrices: by the number of the map, from 1 and with the output last, and the source that it reads.
        """
        affines = [
            replace(affine, terms=tuple(Term(t.source, matrices[k, t.source]) for t in affine.terms))  # type: ignore[arg-type]
            for k, affine in enumerate(self.affines, 1)
        ]
        layers = [replace(layer, affine=affine) for layer, affine in zip(self.layers, affines[:-1], strict=True)]
        return Network(self.input_size, tuple(layers), affines[-1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a bound depends on: structure, matrices, slopes, groups; not of biases and names."""
        return digest(self._contents())

    def _contents(self) -> Iterator[str | npt.NDArray[np.generic]]:
        """Everything that a bound depends on; every list after its length."""
        yield f"lightning-lipschitz network 2 {self.sizes} {len(self.affines)}"
        for affine in self.affines:
            yield f"affine {affine.size} {len(affine.terms)}"
            for term in sorted(affine.terms, key=lambda term: term.source):
                yield f"term {term.source} {term.rounding.hex()}"
                yield term.matrix
        for layer in self.layers:
            yield from (layer.alpha, layer.beta)
            yield np.unique(np.asarray(layer.group), return_inverse=True)[1].astype(np.int64)
