"""What of the matrix inequality depends neither on the weights nor on the multipliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Network

Blocks: TypeAlias = Mapping[tuple[int, int], Tensor]  # W_kj by map k, from 1 and with the output last, and source j < k


def blocks_of(network: Network, device: torch.device | str = "cpu") -> dict[tuple[int, int], Tensor]:
    """The matrices of a network, float64."""
    return {
        (k, term.source): torch.tensor(term.matrix, device=device)
        for k, affine in enumerate(network.affines, 1)
        for term in affine.terms
    }


@dataclass(frozen=True, eq=False)
class Structure:
    """Which sources a network has, which map reads which, and what is known of its units.

    Attributes:
        sizes: widths of the sources: the input, then every layer.
        reads: for every layer, and for the output as the last, the sources that it reads.
        alpha, beta: slopes, float64, shape (n_k,) a layer.
        group: shape (units,): the number of every unit's multiplier; units of a group share theirs.
    """

    sizes: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    alpha: tuple[Tensor, ...]
    beta: tuple[Tensor, ...]
    group: Tensor

    @classmethod
    def of(cls, network: Network, device: torch.device | str = "cpu") -> Structure:
        """The structure of a network, whose matrices are not used."""
        groups, count = [np.zeros(0, dtype=np.int64)], 0
        for layer in network.layers:
            groups.append(np.unique(np.asarray(layer.group), return_inverse=True)[1] + count)
            count = int(groups[-1].max()) + 1
        alpha, beta = (
            tuple(torch.tensor(getattr(layer, side), device=device) for layer in network.layers)
            for side in ("alpha", "beta")
        )
        reads = tuple(tuple(sorted(term.source for term in affine.terms)) for affine in network.affines)
        return cls(network.sizes, reads, alpha, beta, torch.as_tensor(np.concatenate(groups), device=device))

    @property
    def last(self) -> int:
        """The number of the output's map."""
        return len(self.sizes)

    @cached_property
    def count(self) -> int:
        """How many multipliers there are."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @cached_property
    def total(self) -> list[Tensor]:
        """alpha + beta, a layer."""
        return [alpha + beta for alpha, beta in zip(self.alpha, self.beta, strict=True)]

    @cached_property
    def product(self) -> list[Tensor]:
        """alpha beta, a layer."""
        return [alpha * beta for alpha, beta in zip(self.alpha, self.beta, strict=True)]

    @cached_property
    def squared(self) -> frozenset[int]:
        """Maps k with a term ``W_k' D W_k`` in M, D not zero: layers with alpha beta != 0, and the output."""
        return frozenset([self.last, *(k for k, product in enumerate(self.product, 1) if bool(product.any()))])

    @cached_property
    def widths(self) -> list[Tensor]:
        """beta - alpha, a layer."""
        return [beta - alpha for alpha, beta in zip(self.alpha, self.beta, strict=True)]

    @cached_property
    def spans(self) -> list[tuple[float, float]]:
        """(alpha + beta, beta - alpha) of the widest interval of slopes in every layer."""
        ends = [(float(alpha.min()), float(beta.max())) for alpha, beta in zip(self.alpha, self.beta, strict=True)]
        return [(least + most, most - least) for least, most in ends]

    @cached_property
    def plain(self) -> frozenset[int]:
        """Layers whose slopes all lie in [0, 1] and no smaller interval."""
        ends = enumerate(zip(self.alpha, self.beta, strict=True), 1)
        return frozenset(k for k, (alpha, beta) in ends if not bool(alpha.any()) and bool((beta == 1.0).all()))

    @cached_property
    def has_plain_input(self) -> bool:
        """Whether M's block of x is rho I."""
        return not any(0 in self.reads[k - 1] for k in self.squared)

    def shared(self, values: Sequence[Array]) -> Tensor:
        """One multiplier a group, of multipliers that are one a unit, shape (n_k,) a layer."""
        flat = torch.as_tensor(np.concatenate([np.zeros(0), *values]), device=self.group.device)
        return flat.new_zeros(self.count).scatter_(0, self.group, flat)

    def unshared(self, multipliers: Tensor) -> tuple[Tensor, ...]:
        """One multiplier a unit, layer by layer."""
        return torch.split(multipliers[self.group], list(self.sizes[1:])) if self.sizes[1:] else ()

    def gathered(self, units: Tensor) -> Tensor:
        """Sums over the groups, along the first dimension; the adjoint of :meth:`unshared`."""
        if self.count == len(self.group):
            return units
        return units.new_zeros(self.count, *units.shape[1:]).index_add_(0, self.group, units)

    def dense(self, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
        """(A, C, G): the maps of all layers, and that of the output, over all sources (x, z).

        Where M's block of x is rho I, x is left out, and G has the products of the rows with their columns for x.
        """
        plain, like = self.has_plain_input, next(iter(blocks.values()))
        width = 0 if plain else next((block.shape[1] for (_, j), block in blocks.items() if j == 0), 0)
        height = next((len(block) for (k, _), block in blocks.items() if k == self.last), 0)
        columns = _slices([width, *self.sizes[1:]])
        heights = _slices([*self.sizes[1:], height])
        rows = like.new_zeros(heights[-1].stop, columns[-1].stop)
        G = like.new_zeros(len(self.group), len(self.group))
        for (k, j), block in blocks.items():
            if j or not plain:
                rows[heights[k - 1], columns[j]] = block
                continue
            for i in (i for i, source in blocks if source == 0):
                G[heights[k - 1], heights[i - 1]] = block @ blocks[i, 0].mT
        return rows[: len(G)], rows[len(G) :], G


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum([0, *sizes]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]
