"""LipSDP-Network: the published program with multipliers that couple units. FOR REPRODUCTION ONLY: IT IS NOT A BOUND.

Fazlyab et al. 2019, Lemma 1, adds ``lambda_ij (e_i - e_j)(e_i - e_j)'`` to the diagonal multipliers, as if two units
with the same slope interval obeyed it jointly. They do not (Pauli et al., "Training robust neural networks using
Lipschitz bounds", 2021): relu(x + 1) - relu(x - 1) has the constant 1, and the program returns 0.
"""

from __future__ import annotations

import itertools
import warnings

import cvxpy as cp
import numpy as np

from lightning_lipschitz.bounds.lipsdp import reduce
from lightning_lipschitz.errors import ArgumentError, NotABoundWarning, SolverError
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Network

Pairs = list[tuple[int, int]]


def solve(network: Network, couplings: str, *, rtol: float, time_limit: float | None) -> float:
    """The square root of the program's optimum.

    Args:
        network: at most some tens of units, all with the same slope interval.
        couplings: "all" pairs of units, "random:K" K of them, or "spaced:K" K at equal distances in their order.
        rtol: tolerance of the solver.
        time_limit: of the solver, seconds.

    Raises:
        ArgumentError: unknown couplings, or units with different slopes.
        SolverError: no answer.

    Warns:
        NotABoundWarning: always.
    """
    pairs = chosen_pairs(network.num_units, couplings)
    warnings.warn(NotABoundWarning(), stacklevel=4)
    reduced = reduce(network)
    rho = cp.Variable()
    problem = cp.Problem(cp.Minimize(rho), [_matrix(reduced.network, rho, pairs) >> 0])
    options = {} if time_limit is None else {"time_limit": float(time_limit)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy's word on accuracy: the number is no bound anyway
        problem.solve(solver="CLARABEL", tol_gap_rel=rtol / 10, tol_feas=rtol / 10, **options)
    if rho.value is None:
        raise SolverError(f"clarabel ended with status {problem.status!r} and no point.")
    return float(np.sqrt(max(rho.value.item() * reduced.unit, 0.0)))


def chosen_pairs(units: int, couplings: str) -> Pairs:
    """Pairs (i, j), i < j, of the units in their order.

    Example:
        >>> chosen_pairs(3, "all"), chosen_pairs(4, "spaced:2")
        ([(0, 1), (0, 2), (1, 2)], [(0, 1), (2, 3)])
    """
    everything = list(itertools.combinations(range(units), 2))
    kind, _, count = couplings.partition(":")
    if kind == "all" and not count:
        return everything
    if kind not in ("random", "spaced") or not count.isdigit():
        raise ArgumentError("couplings", couplings, '"all", "random:K" or "spaced:K" with K a number of pairs')
    k = min(int(count), len(everything))
    if kind == "random":
        order = np.random.default_rng(0).permutation(len(everything))[:k]
    else:
        order = np.unique(np.linspace(0, len(everything) - 1, k).round().astype(int)) if k else np.zeros(0, int)
    return [everything[i] for i in sorted(order)]


def _matrix(network: Network, rho: cp.Variable, pairs: Pairs) -> cp.Expression:
    """``rho I_x - F'F + S'T T + T'T S`` with the coupled T in place of the diagonal of multipliers."""
    alpha, beta = (_common(network, name) for name in ("alpha", "beta"))
    n0, total = network.input_size, network.input_size + network.num_units
    rows = network.rows()[: network.num_units]
    units = np.eye(total)[n0:]
    difference: Array = np.zeros((len(pairs), network.num_units))
    for row, (i, j) in enumerate(pairs):
        difference[row, i], difference[row, j] = 1.0, -1.0
    own, shared = cp.Variable(network.num_units, nonneg=True), cp.Variable(max(len(pairs), 1), nonneg=True)
    coupling = cp.atoms.affine.diag.diag(own)
    if pairs:
        coupling = coupling + difference.T @ cp.atoms.affine.diag.diag(shared) @ difference
    half = (units - alpha * rows).T @ coupling @ (units - beta * rows)
    output = network.wide(network.output)
    matrix = rho * np.diag(np.r_[np.ones(n0), np.zeros(total - n0)]) - output.T @ output + half + half.T
    symmetric: cp.Expression = 0.5 * (matrix + matrix.T)
    return symmetric


def _common(network: Network, name: str) -> float:
    values = np.unique(np.concatenate([getattr(layer, name) for layer in network.layers]))
    if len(values) != 1:
        raise ArgumentError("slopes", values.tolist(), "one interval for all units; lipsdp-network knows no other case")
    return float(values[0])
