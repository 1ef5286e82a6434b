"""The projection in a round of the alternating direction method of multipliers, for a graph; see :mod:`.admm`.

Its certified set is not a spectral ball: the multipliers are variables of the projection.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from lightning_lipschitz.bounds import interior_point
from lightning_lipschitz.training.consensus import Consensus, ConsensusProblem
from lightning_lipschitz.training.multipliers import squared
from lightning_lipschitz.training.path.constraint import Constraint, Place
from lightning_lipschitz.training.path.descent import PathDescent
from lightning_lipschitz.training.path.start import scaled_inside

_SHARES = (0.3, 0.03)  # gaps at the ends of the stages of one projection, as shares of the squared distance over two
_ITERATIONS = 15
_BACK = (1.0, 0.999, 0.99, 0.95, 0.9)  # factors that bring the last projection inside, where buffers have moved
_FREE = 1.2  # a free squared bound starts that much above what LipSDP finds


def advance(
    consensus: Consensus, constraint: Constraint, shifted: list[Tensor], problem: ConsensusProblem
) -> Consensus:
    """W_bar with its multipliers.

    Args:
        consensus: of the round before.
        constraint: the inequality of the model.
        shifted: W + Y / r, float64: what is projected.
        problem: the bound, or its price.
    """
    price = None if problem.weight is None else problem.weight / consensus.penalty
    descent = PathDescent(constraint, shifted, price)
    place = _projected(descent, _start(descent, consensus, problem))
    weights, multipliers = [w.clone() for w in place.weights], constraint.multipliers(place)
    return replace(consensus, weights=weights, bound=math.sqrt(place.rho), multipliers=multipliers)


def _projected(descent: PathDescent, start: Place) -> Place:
    """V itself where it is inside for the multipliers of the start."""
    if descent.price is None:
        there = descent.constraint.centred(replace(start, weights=descent.target), 1)
        if there is not None:
            return there
    gap = 0.5 * start.distance(descent.target) ** 2 + (descent.price or 0.0) * start.rho
    strengths = [share * gap / descent.constraint.width for share in _SHARES]
    return descent.run(start, strengths, _ITERATIONS)[-1]


def _start(descent: PathDescent, consensus: Consensus, problem: ConsensusProblem) -> Place:
    """The last projection, or V scaled down; with the bound free, V itself with what LipSDP proves of it."""
    known, constraint = consensus.multipliers, descent.constraint
    if known is not None:
        logs = constraint.logs(known.values)
        tried = (Place([factor * w for w in consensus.weights], logs, known.rho) for factor in _BACK)
        inside = next(filter(None, (constraint.centred(place, 1) for place in tried)), None)
        if inside is not None:
            return inside
    bound = problem.max_lipschitz
    if bound is None:
        found = interior_point.propose(constraint.network(descent.target), rtol=1e-3).multipliers
        bound = math.sqrt(squared(max(math.sqrt(_FREE * found.rho), 1e-6)))
    return scaled_inside(constraint, descent.target, bound)
