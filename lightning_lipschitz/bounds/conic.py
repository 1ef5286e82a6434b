"""LipSDP through cvxpy and a general conic solver: the independent reference, for small networks.

Clarabel (interior point) needs seconds at 60 hidden units and half a minute at 100; SCS (first order) is faster and
less exact, and is known to return values below the true constant that it calls optimal. Neither is believed: what comes
back is a proposal.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import cvxpy as cp
import numpy as np

from lightning_lipschitz.bounds.lipsdp import Sharing, reduce
from lightning_lipschitz.certificate import Proposal, Status
from lightning_lipschitz.errors import MissingExtraError, SolverError
from lightning_lipschitz.graph.network import Network

ConicSolver = Literal["clarabel", "scs"]


def propose(
    network: Network,
    *,
    sharing: Sharing = "neuron",
    solver: ConicSolver = "clarabel",
    rtol: float = 1e-6,
    time_limit: float | None = None,
) -> Proposal:
    """Minimise rho subject to M(rho, lambda) >= 0, lambda >= 0.

    Args:
        network: at most some hundred hidden units.
        sharing: one multiplier a unit ("neuron") or a layer.
        solver: what cvxpy calls.
        rtol: the solver's tolerances; about the relative accuracy of rho.
        time_limit: seconds for the solver, problem set-up not counted.

    Raises:
        SolverError: the solver gave no point at all.
        MissingExtraError: it is not installed.
    """
    if solver.upper() not in cp.installed_solvers():
        raise MissingExtraError(f"`solver={solver!r}`", solver, "scs")
    reduced = reduce(network)
    problem, rho, per_layer = _problem(reduced.network, sharing)
    status = _run(problem, solver, rtol, time_limit)
    if rho.value is None or any(part.value is None for part in per_layer):
        raise SolverError(f"{solver} ended with status {status!r} and no point.")
    values = [np.maximum(np.asarray(part.value, dtype=np.float64), 0.0) for part in per_layer]
    point = reduced.restore(float(rho.value.item()), values)
    endings = {cp.OPTIMAL: Status.SOLVED, cp.USER_LIMIT: Status.TIME_LIMIT}
    return Proposal(point, f"lipsdp-{sharing}", solver, endings.get(status, Status.ALMOST_SOLVED))


def _problem(network: Network, sharing: Sharing) -> tuple[cp.Problem, cp.Variable, list[Any]]:
    """The program over (rho, one multiplier a group or a layer), with M written as an affine expression."""
    n0, total = network.input_size, network.input_size + network.num_units
    offsets = np.cumsum((0, *network.sizes))
    rho, per_layer, variables = cp.Variable(), [], []
    output = network.wide(network.output)
    matrix = rho * np.diag(np.r_[np.ones(n0), np.zeros(total - n0)]) - output.T @ output
    for k, layer in enumerate(network.layers, start=1):
        group = np.zeros(layer.size, dtype=np.int64) if sharing == "layer" else np.asarray(layer.group)
        names, owner = np.unique(group, return_inverse=True)
        free = cp.Variable(len(names), nonneg=True)
        expanded = np.eye(len(names))[owner] @ free
        rows, units = network.wide(layer.affine), np.eye(total)[offsets[k] : offsets[k + 1]]
        s, t = units - layer.alpha[:, None] * rows, units - layer.beta[:, None] * rows
        half = s.T @ cp.atoms.affine.diag.diag(expanded) @ t
        matrix = matrix + half + half.T
        per_layer.append(expanded)
        variables.append(free)
    return cp.Problem(cp.Minimize(rho), [0.5 * (matrix + matrix.T) >> 0]), rho, per_layer


def _run(problem: cp.Problem, solver: ConicSolver, rtol: float, time_limit: float | None) -> str:
    options: dict[str, Any]
    if solver == "clarabel":
        options = {"tol_gap_abs": rtol / 10, "tol_gap_rel": rtol / 10, "tol_feas": rtol / 10}
        options |= {} if time_limit is None else {"time_limit": float(time_limit)}
    else:
        options = {"eps_abs": rtol, "eps_rel": rtol, "max_iters": 100_000}
        options |= {} if time_limit is None else {"time_limit_secs": float(time_limit)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy warns of inaccurate solutions; the kernel judges them
        try:
            problem.solve(solver=solver.upper(), **options)
        except cp.SolverError as error:
            raise SolverError(f"{solver} failed: {error}") from error
    return str(problem.status)
