"""The loop: start, centre, then primal-dual steps until the duality gap is small."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.centring import centre
from lightning_lipschitz.bounds.interior_point.iterate import Iterate, advance
from lightning_lipschitz.bounds.interior_point.problem import Problem
from lightning_lipschitz.bounds.interior_point.record import Record
from lightning_lipschitz.bounds.interior_point.result import Ending, Progress, Solution, WarmStart
from lightning_lipschitz.bounds.interior_point.start import recursion, warm
from lightning_lipschitz.bounds.lipsdp import Reduced, Sharing, reduce
from lightning_lipschitz.bounds.threads import few_threads
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.graph.network import Network

_MOST_STEPS = 300
_PATIENCE = 8  # primal-dual steps without a smaller gap


def solve(
    network: Network,
    *,
    sharing: Sharing = "neuron",
    rtol: float = 1e-6,
    time_limit: float | None = None,
    device: torch.device | str = "cpu",
    warm_start: WarmStart | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """LipSDP to a duality gap of ``rtol``.

    Args:
        network: any network; reduced and scaled here.
        sharing: "neuron", one multiplier a unit (or a norm-bounded group), or "layer", one a layer.
        rtol: stop when ``1 - sqrt(lower_bound / rho)`` is below.
        time_limit: seconds; the best feasible multipliers so far are returned. No iteration
            begins that would end later, if it took as long as the one before.
        device: of torch. float64 throughout.
        warm_start: ``Solution.warm_start`` of a network with similar weights; ignored where it does not fit.
        progress: called after every iteration.

    Raises:
        ArgumentError: rtol or time_limit out of range.
        SolverError: no feasible point exists within the range of float64.

    Example:
        >>> solution = solve(Network.from_weights([[[1.0, 2.0], [1.0, -2.0]], [[1.0, 1.0]]]))
        >>> round(solution.rho**0.5, 5), solution.ending
        (2.3094, 'solved')
    """
    if not rtol > 0:
        raise ArgumentError("rtol", rtol, "positive")
    if time_limit is not None and not time_limit >= 0:
        raise ArgumentError("time_limit", time_limit, "None or seconds >= 0")
    start = time.perf_counter()
    reduced = reduce(network)
    record = Record(reduced, rtol, time_limit, progress, start)
    output = [term.matrix for term in reduced.network.output.terms if term.matrix.any()]
    if not reduced.network.layers or not output:
        return record.affine(output)
    problem = Problem(reduced.network, sharing, device)
    with few_threads(problem.size):
        ending = _search(problem, _start(problem, reduced, warm_start), record)
    return record.solution(problem, ending)


def _start(problem: Problem, reduced: Reduced, given: WarmStart | None) -> Tensor:
    start = None if given is None else warm(problem, reduced, given.path)
    return recursion(problem) if start is None else start


def _search(problem: Problem, y: Tensor, record: Record) -> Ending:
    """Both phases; everything worth keeping is in ``record``."""
    point = Iterate.at(problem, y)
    if point is None:
        return "stalled"
    for _ in range(_MOST_STEPS):
        record.add(point, point.lower_bound(problem))
        if record.solved:
            return "solved"
        if record.late:
            return "time limit"
        if record.idle > _PATIENCE:
            return "stalled"
        point = centre(problem, point) if point.X is None else advance(problem, point, point.X)
    return "stalled"
