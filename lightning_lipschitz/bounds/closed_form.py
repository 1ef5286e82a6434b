r"""Feasible points of LipSDP-Layer by one sweep through the layers, no optimisation: cheap certified bounds.

Eliminate the blocks of M one after the other; each layer's multiplier c is chosen when its block is reached, so that
what is left for the others is best.

* ``forward`` starts from the input. With slopes [0, 1] it is ECLipsE-Fast (Xu, Sivaranjani, "ECLipsE: efficient
  compositional Lipschitz constant estimation for deep neural networks", NeurIPS 2024), on a graph the same elimination
  with the sources that are still to be read.
* ``backward`` starts from the output. Neither is always the better one.

Both allow any slopes; put s = alpha + beta, w = beta - alpha. Forward takes ``c = g / p`` with p the largest
eigenvalue of ``W S^-1 W'`` and ``g = 2 / (w (w + |s|))``, which maximises the pivot
``2g - s^2 g^2 / (1 + 2 g alpha beta)``. Backward takes ``2c = r + t`` with r the largest eigenvalue of what the later
layers subtract from the block and ``t = r |s| / w``, which minimises ``c^2 s^2 / (2c - r) - 2 c alpha beta``. Slopes
[0, 1] give c = 1 / p and c = r. Cost: an eigenvalue and a Cholesky factorisation a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from lightning_lipschitz.bounds.lipsdp import reduce
from lightning_lipschitz.certificate.proofs import Array, Multipliers
from lightning_lipschitz.certificate.spectral import largest_eigenvalue
from lightning_lipschitz.graph.network import Affine, Layer, Network

Blocks = dict[tuple[int, int], Array]

SMALLEST_PIVOT = 1e-3  # t / r and 1 - |s| / w are kept above it: with slopes [-kappa, kappa] the best pivot is singular
SMALLEST_MULTIPLIER = 1e-12  # r for units that nothing reads, relative to |output map|_F^2
SHARED_PIVOT = 0.5  # in place of it where others read what the layer reads: the best number for x + |x|
SLACK = 1e-8  # relative step into the interior, where rounding cannot spoil the proof


def propose(network: Network) -> tuple[Multipliers, ...]:
    """The points of both sweeps, the lower rho first; empty where the output does not depend on the input."""
    reduced = reduce(network)
    points = [sweep(reduced.network) for sweep in (backward, forward)]
    restored = [reduced.restore(point.rho, point.values) for point in points if point is not None]
    return tuple(sorted(restored, key=lambda point: point.rho))


def forward(network: Network) -> Multipliers | None:
    """From the input to the output; rho is scaled to 1 on the way and put back at the end.

    S is the inverse of M's block of the sources that are still to be read, with all others eliminated. With the rows A
    of a layer over these, G = A S A' and D = 2 c diag(alpha beta), the layer's pivot is X = 2 c I - c^2 diag(s) (I + G
    D)^-1 G diag(s), and with K = c diag(s) (I + G D)^-1 A S

        S <- [ S - S A' D (I + G D)^-1 A S,  0;  0,  0 ] + [K, I]' X^-1 [K, I].
    """
    last = _last_readers(network)
    sources, covariance = [0], np.eye(network.input_size)
    multipliers = []
    for k, layer in enumerate(network.layers, 1):
        rows = _rows(layer.affine, sources, network.sizes)
        seen = rows @ covariance
        gram = seen @ rows.T
        read = np.repeat([last[source] > k for source in sources], [network.sizes[source] for source in sources])
        c, inverse = _forward_step(layer, gram, shared=bool(read.any()))
        if inverse is None:
            return None
        multipliers.append(np.full(layer.size, c))
        covariance = _forward_covariance(layer, c, inverse, seen, gram, covariance, read)
        sources = [*(source for source in sources if last[source] > k), k]
    final = _rows(network.output, sources, network.sizes)
    rho = largest_eigenvalue(final @ covariance @ final.T) * (1.0 + SLACK)
    return Multipliers(rho, tuple(rho * c for c in multipliers)) if np.isfinite(rho) and rho > 0 else None


def _last_readers(network: Network) -> list[int]:
    """The number of the last layer that reads each source, with the output as the last layer."""
    last = [0] * len(network.sizes)
    for k, affine in enumerate(network.affines, 1):
        for term in affine.terms:
            last[term.source] = k
    return last


def _rows(affine: Affine, sources: Sequence[int], sizes: Sequence[int]) -> Array:
    """A layer's matrices beside each other, one for every source."""
    matrices = {term.source: term.matrix for term in affine.terms}
    return np.hstack([matrices.get(source, np.zeros((affine.size, sizes[source]))) for source in sources])


def _forward_covariance(
    layer: Layer, c: float, inverse: Array, seen: Array, gram: Array, covariance: Array, read: Array
) -> Array:
    """S after a layer, of the sources that are ``read`` later and the layer's units; ``inverse`` is X^-1."""
    if not read.any():
        return inverse
    before: Array = seen[:, read]
    kept: Array = covariance[np.ix_(read, read)]
    weight = 2.0 * c * layer.alpha * layer.beta
    if np.any(weight):
        before[:] = np.linalg.solve(np.eye(layer.size) + gram * weight, before)
        kept -= seen[:, read].T @ (weight[:, None] * before)
    coupling = c * (layer.alpha + layer.beta)[:, None] * before
    across = inverse @ coupling
    return np.block([[kept + coupling.T @ across, across.T], [across, inverse]])


def _forward_step(layer: Layer, seen: Array, *, shared: bool) -> tuple[float, Array | None]:
    """c and the inverse of the pivot; c is halved where slopes that differ inside the layer make the formula
    overshoot.
    """
    alpha, beta = float(layer.alpha.min()), float(layer.beta.max())
    s, w, p = alpha + beta, beta - alpha, largest_eigenvalue(seen)
    if not p > 0:
        return 0.0, None
    back = (SHARED_PIVOT if shared else SMALLEST_PIVOT) * (1.0 - abs(s) / w)
    c = (1.0 - max(SLACK, back)) * 2.0 / (w * (w + abs(s))) / p
    for _ in range(60):
        try:
            return c, _inverse(_forward_pivot(layer, seen, c))
        except np.linalg.LinAlgError:
            c *= 0.5
    return 0.0, None


def _forward_pivot(layer: Layer, seen: Array, c: float) -> Array:
    """``2 c I - c^2 diag(s) (seen^-1 + 2 c diag(alpha beta))^-1 diag(s)``."""
    s, weight = layer.alpha + layer.beta, 2.0 * c * layer.alpha * layer.beta
    inner = np.linalg.solve(np.eye(layer.size) + seen * weight, seen) if np.any(weight) else seen
    return 2.0 * c * np.eye(layer.size) - c**2 * s[:, None] * inner * s


def backward(network: Network) -> Multipliers | None:
    """From the output to the input."""
    blocks: Blocks = {}
    _subtract_square(blocks, network.output, np.ones(network.output.size))
    floor = SMALLEST_MULTIPLIER * sum(float(np.sum(term.matrix**2)) for term in network.output.terms)
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


def _inverse(matrix: Array) -> Array:
    inverse: Array = cho_solve(cho_factor(matrix, lower=True), np.eye(len(matrix)))
    return inverse
