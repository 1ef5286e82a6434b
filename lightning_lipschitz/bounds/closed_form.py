r"""Feasible points of LipSDP-Layer by one sweep through the layers, no optimisation: cheap certified bounds.

Eliminate the blocks of M one after the other; each layer's multiplier c is chosen when its block is reached, so that
what is left for the others is best.

* ``forward`` starts from the input; see :mod:`lightning_lipschitz.bounds.inequality.sweep`.
* ``backward`` starts from the output. Neither is always the better one.

Both allow any slopes; put s = alpha + beta, w = beta - alpha. Forward takes ``c = g / p`` with p the largest
eigenvalue of ``W S^-1 W'`` and ``g = 2 / (w (w + |s|))``, which maximises the pivot
``2g - s^2 g^2 / (1 + 2 g alpha beta)``. Backward takes ``2c = r + t`` with r the largest eigenvalue of what the later
layers subtract from the block and ``t = r |s| / w``, which minimises ``c^2 s^2 / (2c - r) - 2 c alpha beta``. Slopes
[0, 1] give c = 1 / p and c = r. Cost: an eigenvalue and a Cholesky factorisation a layer.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from lightning_lipschitz.bounds.inequality import Structure, blocks_of, sweep
from lightning_lipschitz.bounds.inequality.sweep import SLACK, SMALLEST_PIVOT
from lightning_lipschitz.bounds.lipsdp import reduce
from lightning_lipschitz.certificate.proofs import Multipliers, Proposal
from lightning_lipschitz.certificate.spectral import largest_eigenvalue
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Affine, Layer, Network

Blocks = dict[tuple[int, int], Array]

_SMALLEST_MULTIPLIER = 1e-12  # r for units that nothing reads, relative to |output map|_F^2


def propose(network: Network) -> tuple[Proposal, ...]:
    """Multipliers of both sweeps, the lower rho first; empty where the output does not depend on the input."""
    reduced = reduce(network)
    points = [direction(reduced.network) for direction in (backward, forward)]
    restored = [reduced.restore(point.rho, point.values) for point in points if point is not None]
    restored.sort(key=lambda point: point.rho)
    return tuple(Proposal(point, "closed-form", "closed-form") for point in restored)


def forward(network: Network) -> Multipliers | None:
    """From the input to the output."""
    swept = sweep(Structure.of(network), blocks_of(network))
    if swept is None:
        return None
    rho = largest_eigenvalue(swept.covariance.numpy()) * (1.0 + SLACK)
    return Multipliers(rho, tuple(rho * lam.numpy() for lam in swept.multipliers)) if 0 < rho < math.inf else None


def backward(network: Network) -> Multipliers | None:
    """From the output to the input."""
    blocks: Blocks = {}
    _subtract_square(blocks, network.output, np.ones(network.output.size))
    floor = _SMALLEST_MULTIPLIER * sum(float(np.sum(term.matrix**2)) for term in network.output.terms)
    values: list[Array] = []
    for k in range(len(network.layers), 0, -1):
        layer = network.layers[k - 1]
        r = max(largest_eigenvalue(-blocks[k, k]) if (k, k) in blocks else 0.0, floor)
        c = 0.5 * (1.0 + SLACK) * (r + _backward_pivot(layer, r, coupled=any(j == k and i < k for i, j in blocks)))
        values.insert(0, np.full(layer.size, c))
        try:
            _eliminate(blocks, k, layer, c)
        except np.linalg.LinAlgError:  # no output reads the layer, or so little of it that c rounds to zero
            return None
    rho = largest_eigenvalue(-blocks[0, 0]) * (1.0 + SLACK) if (0, 0) in blocks else 0.0
    return Multipliers(rho, tuple(values)) if np.isfinite(rho) and rho > 0 else None


def _backward_pivot(layer: Layer, r: float, *, coupled: bool) -> float:
    """t. The formula holds where only later layers see this one; beside a skip connection t = r is kept."""
    alpha, beta = float(layer.alpha.min()), float(layer.beta.max())
    return r if coupled else r * max(abs(alpha + beta) / (beta - alpha), SMALLEST_PIVOT)


def _eliminate(blocks: Blocks, k: int, layer: Layer, multiplier: float) -> None:
    """Replace layer k's rows and columns by their Schur complement."""
    _subtract_square(blocks, layer.affine, -2.0 * multiplier * layer.alpha * layer.beta)
    weight = multiplier * (layer.alpha + layer.beta)
    for term in layer.affine.terms:
        _add(blocks, (term.source, k), -(weight[:, None] * term.matrix).T)
    pivot = 2.0 * multiplier * np.eye(layer.size) + blocks.pop((k, k), np.zeros((layer.size, layer.size)))
    factor = cho_factor(pivot, lower=True, check_finite=False)
    panels = {i: blocks.pop((i, j)) for i, j in sorted(blocks) if j == k}
    for j, right in panels.items():
        solved = cho_solve(factor, right.T, check_finite=False)
        for i, left in panels.items():
            if i <= j:
                _add(blocks, (i, j), -left @ solved)


def _subtract_square(blocks: Blocks, affine: Affine, weight: Array) -> None:
    """``- W_i' diag(weight) W_j`` for every pair of terms."""
    if not np.any(weight):
        return
    for left in affine.terms:
        for right in affine.terms:
            if left.source <= right.source:
                _add(blocks, (left.source, right.source), -left.matrix.T @ (weight[:, None] * right.matrix))


def _add(blocks: Blocks, key: tuple[int, int], part: Array) -> None:
    blocks[key] = blocks[key] + part if key in blocks else part
