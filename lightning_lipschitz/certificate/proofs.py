"""What a bound method hands to the kernel: numbers from which a bound can be proved. Proposals until verified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from lightning_lipschitz.certificate.scalars import Status
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.real import real_array, real_number


def _frozen(values: npt.ArrayLike) -> Array:
    array = real_array(values, "the numbers of a proof")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class _RhoAndLambda:
    rho: float
    values: tuple[Array, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", real_number(self.rho, "rho"))
        object.__setattr__(self, "values", tuple(_frozen(values) for values in self.values))


class Multipliers(_RhoAndLambda):
    """A point of the LMI ``M(rho, lambda) >= 0`` of :mod:`lightning_lipschitz.certificate.lmi`.

    Args:
        rho: the squared bound.
        values: lambda, one array of shape (n_k,) for each layer; units of one group carry the same value.
    """


class Channels(_RhoAndLambda):
    """Multipliers of a convolutional part, one a channel (:mod:`lightning_lipschitz.certificate.spectrum`).

    Args:
        rho: the squared bound.
        values: lambda, one array of shape (channels,) for each layer of units.
    """


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
class Composition:
    """What bounds a graph.

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


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a bound method returns: a candidate for the kernel, and what the method says of it.

    Attributes:
        proof: of the network, or the graph, as given; it may be slightly infeasible.
        method: that found it, as :class:`~lightning_lipschitz.Certificate` names it.
        solver: what computed the numbers.
        status: how the search ended, of SOLVED, ALMOST_SOLVED, TIME_LIMIT and FALLBACK.
        lower_bound: no proof of this kind proves less than this; None where the method does not say.
        loss: relative increase of the bound that it took to make the proof hold in floating point.
        state: anything the same solver can start from next time.
    """

    proof: AnyProof
    method: str
    solver: str
    status: Status = Status.SOLVED
    lower_bound: float | None = None
    loss: float = 0.0
    state: Any = field(default=None, repr=False)

    @property
    def multipliers(self) -> Multipliers:
        """The proof of a method that returns multipliers."""
        if not isinstance(self.proof, Multipliers):
            raise TypeError(f"{self.method} proposes no multipliers")
        return self.proof

    def gap(self, upper_bound: float) -> float | None:
        """Relative distance of a bound from ``lower_bound``."""
        return None if self.lower_bound is None else max(0.0, 1.0 - self.lower_bound / upper_bound)
