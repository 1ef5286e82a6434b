"""LipSDP on a torch device: constraint matrices as operators that touch one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_lipschitz.bounds.lipsdp import Sharing
from lightning_lipschitz.graph.network import Affine, Layer, Network

# Up to this size one dense product is cheaper than a Python loop over blocks.
_DENSE = 160


@dataclass(frozen=True, eq=False)
class Block:
    """The part of A in the rows of (some) units and the columns of (some) sources."""

    rows: slice
    columns: slice
    matrix: Tensor


class Problem:
    """``min rho`` over ``Z(rho, lam) = rho E + sum_g lam_g B_g - C >= 0``, with v = (x, z) of length n.

    E is the identity on x, C = F'F for the output map F, ``B_g = sum over i in g of s_i t_i' + t_i s_i'`` with
    ``s_i = e_i - alpha_i a_i`` and ``t_i = e_i - beta_i a_i``; row i of A is a_i, the pre-activation of unit i.
    ``lam >= 0`` needs no cone of its own: written in u = z - alpha y, the diagonal of Z at unit i is lam_i times two
    less a square, so Z >= 0 implies it.

    Args:
        network: reduced and scaled; at least one unit.
        sharing: "neuron" one multiplier a group of the network, "layer" one a layer.
        device: where the tensors live; always float64.
    """

    def __init__(self, network: Network, sharing: Sharing, device: torch.device | str = "cpu") -> None:
        edges = [0, *np.cumsum(network.sizes).tolist()]
        self.device = torch.device(device)
        self.sources = [slice(a, b) for a, b in pairwise(edges)]
        self.num_inputs, self.num_units, self.size = network.input_size, network.num_units, edges[-1]
        self.x, self.z = slice(0, self.num_inputs), slice(self.num_inputs, self.size)
        self.alpha = self.tensor(np.concatenate([layer.alpha for layer in network.layers]))
        self.beta = self.tensor(np.concatenate([layer.beta for layer in network.layers]))
        self.sum, self.product = self.alpha + self.beta, self.alpha * self.beta
        self.bypass = bool((self.alpha != 0).any())
        self.group = torch.as_tensor(_group_numbers(network.layers, sharing), device=self.device)
        self.num_groups = int(self.group.max()) + 1
        self.shared = self.num_groups < self.num_units
        self.output = self._wide(network.output)
        self.blocks = self._blocks(network)

    @property
    def layers(self) -> list[slice]:
        """Units of every layer, counted from the first unit."""
        return [slice(s.start - self.num_inputs, s.stop - self.num_inputs) for s in self.sources[1:]]

    def tensor(self, values: npt.ArrayLike) -> Tensor:
        return torch.tensor(np.asarray(values), dtype=torch.float64, device=self.device)

    def _wide(self, affine: Affine) -> Tensor:
        """The map as one matrix that acts on the whole of v."""
        full = np.zeros((affine.size, self.size))
        for term in affine.terms:
            full[:, self.sources[term.source]] = term.matrix
        return self.tensor(full)

    def _blocks(self, network: Network) -> list[Block]:
        if self.size <= _DENSE:
            rows = torch.cat([self._wide(layer.affine) for layer in network.layers])
            return [Block(slice(0, self.num_units), slice(0, self.size), rows)]
        return [
            Block(units, self.sources[term.source], self.tensor(term.matrix))
            for units, layer in zip(self.layers, network.layers, strict=True)
            for term in layer.affine.terms
        ]

    # -- A as an operator ----------------------------------------------------------------------------------------------

    def rows(self, right: Tensor) -> Tensor:
        """A K, shape (N, columns of K)."""
        if len(self.blocks) == 1:
            return self.blocks[0].matrix @ right[self.blocks[0].columns]
        out = right.new_zeros(self.num_units, right.shape[1])
        for block in self.blocks:
            out[block.rows].addmm_(block.matrix, right[block.columns])
        return out

    def add_spread(self, out: Tensor, left: Tensor) -> Tensor:
        """``out += left A`` for left of shape (m, N)."""
        for block in self.blocks:
            out[:, block.columns].addmm_(left[:, block.rows], block.matrix)
        return out

    def dense_rows(self) -> Tensor:
        """A itself, shape (N, n)."""
        out = torch.zeros(self.num_units, self.size, dtype=torch.float64, device=self.device)
        for block in self.blocks:
            out[block.rows, block.columns] = block.matrix
        return out

    # -- multipliers ---------------------------------------------------------------------------------------------------

    def spread(self, lam: Tensor) -> Tensor:
        """One multiplier a group to one a unit."""
        return lam[self.group] if self.shared else lam

    def collect(self, values: Tensor) -> Tensor:
        """Sums over groups, the adjoint of :meth:`spread`; of an (N, N) matrix in both directions."""
        if not self.shared:
            return values
        for axis in range(values.dim()):
            shape = [self.num_groups if a == axis else s for a, s in enumerate(values.shape)]
            values = values.new_zeros(shape).index_add_(axis, self.group, values)
        return values

    # -- the matrix inequality -----------------------------------------------------------------------------------------

    def slack(self, y: Tensor) -> Tensor:
        """Z(rho, lam) for y = (rho, lam)."""
        return self.combine(y).addmm_(self.output.T, self.output, alpha=-1.0)

    def combine(self, y: Tensor) -> Tensor:
        """rho E + sum_g lam_g B_g for y = (rho, lam)."""
        lam = self.spread(y[1:])
        out = torch.zeros(self.size, self.size, dtype=torch.float64, device=self.device)
        weight = (-self.sum * lam)[:, None]
        for block in self.blocks:
            part = block.matrix * weight[block.rows]
            out[self.z][block.rows, block.columns] += part
            out[:, self.z][block.columns, block.rows] += part.T
        if self.bypass:
            self.add_spread(out, (self.dense_rows() * (2 * self.product * lam)[:, None]).T)
        diagonal = out.diagonal()
        diagonal[self.x] += y[0]
        diagonal[self.z] += 2 * lam
        return out

    def adjoint(self, matrix: Tensor) -> Tensor:
        """(tr E K, tr B_1 K, ...) of a symmetric K."""
        diagonal = matrix.diagonal()
        units = 2 * diagonal[self.z]
        for block in self.blocks:
            cross = (block.matrix * matrix[self.z][block.rows, block.columns]).sum(dim=1)
            units[block.rows] -= 2 * self.sum[block.rows] * cross
        if self.bypass:
            images = self.rows(matrix)
            for block in self.blocks:
                square = (block.matrix * images[block.rows, block.columns]).sum(dim=1)
                units[block.rows] += 2 * self.product[block.rows] * square
        return torch.cat([diagonal[self.x].sum()[None], self.collect(units)])

    def times(self, left: Tensor, images: Tensor, y: Tensor) -> Tensor:
        """``left @ combine(y)`` given ``images = left A'``: products with A only."""
        lam = self.spread(y[1:])
        out = torch.empty_like(left)
        torch.mul(left[:, self.x], y[0], out=out[:, self.x])
        torch.mul(left[:, self.z], 2 * lam, out=out[:, self.z])
        out[:, self.z].addcmul_(images, self.sum * lam, value=-1.0)
        weighted = left[:, self.z] * (-self.sum * lam)
        if self.bypass:
            weighted.addcmul_(images, 2 * self.product * lam)
        return self.add_spread(out, weighted)

    def value(self, X: Tensor) -> Tensor:
        """tr(C X), the primal objective: a lower bound on rho for every feasible X."""
        return ((self.output @ X) * self.output).sum()


def _group_numbers(layers: tuple[Layer, ...], sharing: Sharing) -> npt.NDArray[np.int64]:
    """The multiplier of every unit, numbered through the network."""
    numbers, first = [], 0
    for layer in layers:
        own = (
            np.unique(np.asarray(layer.group), return_inverse=True)[1] if sharing == "neuron" else np.zeros(layer.size)
        )
        numbers.append(own.astype(np.int64) + first)
        first = int(numbers[-1].max()) + 1
    return np.concatenate(numbers)
