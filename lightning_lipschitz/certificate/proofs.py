"""What a bound method hands to the kernel: numbers from which a bound can be proved. Proposals until verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.real import real_array, real_number

Array = npt.NDArray[np.float64]


def _frozen(values: npt.ArrayLike) -> Array:
    array = real_array(values, "the numbers of a proof")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Multipliers:
    """A point of the LMI ``M(rho, lambda) >= 0`` of :mod:`lightning_lipschitz.certificate.lmi`.

    Args:
        rho: the squared bound.
        values: lambda, one array of shape (n_k,) for each layer; units of one group carry the same value.
    """

    rho: float
    values: tuple[Array, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", real_number(self.rho, "rho"))
        object.__setattr__(self, "values", tuple(_frozen(values) for values in self.values))


@dataclass(frozen=True, eq=False)
class Norms:
    """Upper bounds of spectral norms: ``values[k][t]`` for term t of affine map k, the output's map last."""

    values: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(tuple(real_number(s, "a norm") for s in row) for row in self.values))


@dataclass(frozen=True, eq=False)
class Split:
    """Proofs of the pieces between ``cuts``, layers that every path goes through (numbered from 1)."""

    cuts: tuple[int, ...]
    parts: tuple[Proof, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cuts", tuple(int(k) for k in self.cuts))
        object.__setattr__(self, "parts", tuple(self.parts))


@dataclass(frozen=True, eq=False)
class Channels:
    """Multipliers of a convolutional part, one a channel (:mod:`lightning_lipschitz.certificate.spectrum`).

    Args:
        rho: the squared bound.
        values: lambda, one array of shape (channels,) for each layer of units.
    """

    rho: float
    values: tuple[Array, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", real_number(self.rho, "rho"))
        object.__setattr__(self, "values", tuple(_frozen(values) for values in self.values))


@dataclass(frozen=True, eq=False)
class Composition:
    """What bounds a structured graph.

    Args:
        norms: upper bounds of the norms of its linear nodes, in the order of
            :func:`lightning_lipschitz.certificate.composition.claimed`; infinity claims nothing.
        blocks: (start, end, proof): the part from node ``start`` to node ``end`` is bounded by ``proof``; written out
            explicitly, or one frequency at a time where the proof is of the kind :class:`Channels`.
    """

    norms: Array
    blocks: tuple[tuple[int, int, Proof | Channels], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "norms", _frozen(self.norms))
        blocks = tuple((int(start), int(end), proof) for start, end, proof in self.blocks)
        object.__setattr__(self, "blocks", blocks)


Proof: TypeAlias = Multipliers | Norms | Split
AnyProof: TypeAlias = Proof | Composition
