"""The projection in a round of the alternating direction method of multipliers, for a chain; see :mod:`.admm`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from lightning_lipschitz.bounds.interior_point import WarmStart
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.consensus import Consensus, ConsensusProblem, norm
from lightning_lipschitz.training.multipliers import solve_multipliers
from lightning_lipschitz.training.result import State
from lightning_lipschitz.training.spectral_ball.certified_set import CertifiedSet
from lightning_lipschitz.training.spectral_ball.regularized import regularized

_RTOL_MULTIPLIERS = 1e-2  # of LipSDP between rounds: the set moves more than that before the next one
_MOVED = 0.15  # relative distance that weights move before their multipliers are solved for again
_RTOL_PROJECTION = 1e-2
_LEAST_MULTIPLIER = 1e-3  # of the largest in its layer
_SMALLEST_BOUND = 1e-6  # a free bound starts no lower


def advance(
    consensus: Consensus, chain: Network, weights: list[Tensor], shifted: list[Tensor], problem: ConsensusProblem
) -> Consensus:
    """W_bar, with the multipliers of LipSDP.

    Args:
        consensus: of the round before.
        chain: with the weights in training and slopes that contain zero.
        weights: W, float64.
        shifted: W + Y / r, what is projected.
        problem: the bound, or its price.
    """
    current = consensus if _is_recent(consensus, weights, problem) else _solve(consensus, weights, chain, problem)
    if current.multipliers is None:
        raise RuntimeError("multipliers are solved for in the first round")
    ball = CertifiedSet.of(chain, current.multipliers)
    nearest, bound, state = _project(ball, shifted, consensus, problem)
    return replace(current, weights=nearest, bound=bound, state=state)


def _is_recent(consensus: Consensus, weights: Sequence[Tensor], problem: ConsensusProblem) -> bool:
    """Whether the multipliers at hand are those of nearly these weights. Where the bound is free they follow it."""
    if consensus.multipliers is None or problem.max_lipschitz is None:
        return False
    moved = norm([w - before for w, before in zip(weights, consensus.solved_at, strict=True)])
    return moved <= _MOVED * norm(weights)


def _solve(consensus: Consensus, weights: list[Tensor], chain: Network, problem: ConsensusProblem) -> Consensus:
    target = problem.max_lipschitz or _free_bound(chain, consensus)
    solved = solve_multipliers(chain, target, rtol=_RTOL_MULTIPLIERS, warm_start=consensus.warm_start)
    kept = solved.warm_start if isinstance(solved.warm_start, WarmStart) else None
    return replace(consensus, multipliers=_evened(solved.multipliers), solved_at=weights, warm_start=kept)


def _evened(multipliers: Multipliers) -> Multipliers:
    """Multipliers with a floor under those of each layer. Any lambda > 0 stands for a set of certified weights.

    A unit that the last projection silenced needs none, and would be held silent by a lambda near zero: the set is
    flat there, and projections on it do not converge.
    """
    values = tuple(np.maximum(value, _LEAST_MULTIPLIER * value.max()) for value in multipliers.values)
    return replace(multipliers, values=values)


def _free_bound(chain: Network, consensus: Consensus) -> float:
    """Where the search for a free bound starts: at the last one, or at that of the weights."""
    known = math.isfinite(consensus.bound)
    bound = consensus.bound if known else solve_multipliers(chain, 1.0, rtol=_RTOL_MULTIPLIERS).bound
    return max(bound, _SMALLEST_BOUND)


def _project(
    ball: CertifiedSet, shifted: list[Tensor], consensus: Consensus, problem: ConsensusProblem
) -> tuple[list[Tensor], float, State | None]:
    if problem.weight is None:
        projected = ball.project(shifted, consensus.state, rtol=_RTOL_PROJECTION)
        return projected.weights, ball.multipliers.rho**0.5, projected.state
    free = regularized(ball, shifted, weight=problem.weight, penalty=consensus.penalty, state=consensus.state)
    return free.weights, free.rho**0.5, free.state
