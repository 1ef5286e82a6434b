"""Constraint: the matrix inequality of a graph in its weights and multipliers together; Place: a point inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lipschitz.bounds.inequality import Inequality, Structure
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.multipliers import widened
from lightning_lipschitz.weights.maps import WeightMap


@dataclass(frozen=True, eq=False)
class Place:
    """A point strictly inside the certified set.

    Attributes:
        weights: float64.
        logs: logarithms of the multipliers, one a group.
        rho: the squared bound that they prove.
    """

    weights: list[Tensor]
    logs: Tensor
    rho: float

    def distance(self, weights: Sequence[Tensor]) -> float:
        """l2, all weights together."""
        pairs = zip(self.weights, weights, strict=True)
        return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))

    def towards(self, other: Place, share: float) -> Place:
        """On the segment to another one."""
        weights = [torch.lerp(a, b, share) for a, b in zip(self.weights, other.weights, strict=True)]
        return replace(self, weights=weights, logs=torch.lerp(self.logs, other.logs, share))


@dataclass(frozen=True, eq=False)
class Constraint:
    """The matrix inequality of a model's network.

    Attributes:
        map: weights -> matrices.
        wide: the network with slopes that contain zero; its matrices are not used.
        structure: what its inequality depends on beside weights and multipliers, on the device of the weights.
    """

    map: WeightMap
    wide: Network
    structure: Structure

    @classmethod
    def of(cls, map: WeightMap, network: Network, weights: Sequence[Tensor]) -> Constraint:
        """The inequality of a network, whose slopes are widened to contain zero."""
        wide = widened(network)
        return cls(map, wide, Structure.of(wide, weights[0].device))

    @property
    def width(self) -> int:
        """Entries of (x, z): the size of the matrix inequality."""
        return sum(self.structure.sizes)

    def network(self, weights: Sequence[Tensor]) -> Network:
        """The widened network with these weights."""
        return self.map.network(self.wide, weights)

    def logs(self, values: Sequence[Array]) -> Tensor:
        """Logarithms of multipliers, one a group."""
        return self.structure.shared(values).log()

    def multipliers(self, place: Place) -> Multipliers:
        """Multipliers of the widened network at a place."""
        values = self.structure.unshared(place.logs.exp())
        return Multipliers(place.rho, tuple(value.cpu().numpy() for value in values))

    def centred(self, place: Place, steps: int) -> Place | None:
        """The place with its multipliers moved further inside, by Newton steps; None where it is not inside."""
        blocks, lam = self.map(place.weights), place.logs.exp()
        if Inequality(self.structure, lam, place.rho).at(blocks) is None:
            return None
        for _ in range(steps if len(lam) else 0):
            moved = Inequality(self.structure, lam, place.rho).centred(blocks)
            if moved is None:
                break
            lam = moved
        return replace(place, logs=lam.log())
