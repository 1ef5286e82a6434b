"""The projection's problem as it stands on paper, for a convex solver and for the dense matrix inequality."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.graph.network import Network
from tests.helpers import chain, grouped

SLOPES = {
    "relu": (0.0, 1.0),
    "sigmoid": (0.0, 0.25),
    "symmetric": (-1.0, 1.0),
    "swish-like": (-0.13, 1.13),
    "falling": (-1.0, 0.0),
}
CHAINS = {
    name: (lambda slopes=slopes: chain((4, 5, 4, 2), seed=3, gain=1.5, slopes=slopes))
    for name, slopes in SLOPES.items()
}
CHAINS |= {"wide": lambda: chain((12, 4, 3), seed=1), "deep": lambda: chain((3, 4, 4, 4, 4, 2), seed=2, gain=1.5)}
CHAINS |= {"one hidden unit": lambda: chain((2, 1, 3)), "no hidden layer": lambda: chain((4, 3)), "groups": grouped}


def matrices(network: Network) -> list[np.ndarray]:
    return [affine.terms[0].matrix for affine in network.affines]


def some_multipliers(network: Network, seed: int = 0) -> Multipliers:
    """Positive, of no particular merit, equal within a group."""
    rng = np.random.default_rng(seed)
    values = []
    for layer in network.layers:
        group = np.unique(np.asarray(layer.group), return_inverse=True)[1]
        values.append(np.exp(rng.normal(size=group.max() + 1))[group])
    return Multipliers(float(np.exp(rng.normal())), tuple(values))


def dense_lmi(network: Network, proof: Multipliers) -> np.ndarray:
    """M(rho, lambda) from its definition with the vectors s_i and t_i, in float64."""
    edges = np.cumsum((0, *network.sizes))
    M = np.zeros((edges[-1], edges[-1]))
    M[range(edges[1]), range(edges[1])] += proof.rho

    def rows(affine):
        out = np.zeros((affine.size, edges[-1]))
        for term in affine.terms:
            out[:, edges[term.source] : edges[term.source + 1]] = term.matrix
        return out

    last = rows(network.output)
    M -= last.T @ last
    for k, (layer, lam) in enumerate(zip(network.layers, proof.values, strict=True), start=1):
        A, E = rows(layer.affine), np.eye(edges[-1])[edges[k] : edges[k + 1]]
        S, T = E - layer.alpha[:, None] * A, E - layer.beta[:, None] * A
        M += S.T @ (lam[:, None] * T) + T.T @ (lam[:, None] * S)
    return M


def nearest_by_conic_solver(
    network: Network, proof: Multipliers, *, solver: str = "CLARABEL", mu: float = 0.0, **options
):
    """argmin over W (and rho, if mu > 0) of mu rho + |W - V|^2 / 2 subject to M >= 0, by Schur complements."""
    given = matrices(network)
    W = [cp.Variable(V.shape) for V in given]
    rho = cp.Variable(nonneg=True) if mu else proof.rho
    sizes = network.sizes
    blocks = {(0, 0): rho * np.eye(sizes[0])}
    extra = []
    for k, (layer, lam) in enumerate(zip(network.layers, proof.values, strict=True), start=1):
        blocks[k, k] = np.diag(2 * lam)
        blocks[k, k - 1] = -np.diag(lam * (layer.alpha + layer.beta)) @ W[k - 1]
        quadratic = np.sqrt(-2 * lam * np.minimum(layer.alpha * layer.beta, 0))
        extra.append((k - 1, np.diag(quadratic) @ W[k - 1]))
    extra.append((len(sizes) - 1, W[-1]))
    widths = [*sizes, *(rows.shape[0] for _, rows in extra)]
    for k, (source, rows) in enumerate(extra, start=len(sizes)):
        blocks[k, source], blocks[k, k] = rows, np.eye(widths[k])
    blocks |= {(j, i): block.T for (i, j), block in blocks.items() if i != j}
    count = range(len(widths))
    grid = [[blocks[i, j] if (i, j) in blocks else np.zeros((widths[i], widths[j])) for j in count] for i in count]
    distance = sum(cp.sum_squares(w - v) for w, v in zip(W, given, strict=True)) / 2
    problem = cp.Problem(cp.Minimize(distance + (mu * rho if mu else 0)), [cp.bmat(grid) >> 0])
    problem.solve(solver=solver, **options)
    return problem, [w.value for w in W], rho.value if mu else rho
