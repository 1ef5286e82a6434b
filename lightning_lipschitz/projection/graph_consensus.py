"""A round of the alternating direction method of multipliers for any graph: the step of :mod:`.consensus` in weights
whose certified set is not a spectral ball, with the multipliers as variables of the projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lightning_lipschitz.bounds import interior_point
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.projection.consensus import Consensus, Problem, update_duals
from lightning_lipschitz.projection.graph_descent import Descent, Place, centre
from lightning_lipschitz.projection.graph_map import GraphMap, form_of
from lightning_lipschitz.projection.graph_start import scaled_inside
from lightning_lipschitz.projection.multipliers import squared, widened

_SHARES = (0.3, 0.03)  # gaps at the ends of the stages of one projection, as shares of the squared distance over two
_ITERATIONS = 15
_BACK = (1.0, 0.999, 0.99, 0.95, 0.9)  # factors that bring the last projection inside, where buffers have moved
_FREE = 1.2  # a free squared bound starts that much above what LipSDP finds


def advance(
    consensus: Consensus, weights: Sequence[Tensor], network: Network, problem: Problem, map: GraphMap
) -> Consensus:
    """One round: W_bar with its multipliers, Y, and the penalty if it is to follow the residuals.

    Args:
        consensus: of the round before.
        weights: W, as training left them.
        network: its slopes and groups are used, not its matrices.
        problem: the bound, or its price.
        map: weights -> rows.

    Raises:
        ProjectionError: no weights meet the bound, because of skip connections.
        SolverError, NonFiniteError: LipSDP failed; weights that are not finite.
    """
    doubles, wide = [w.detach().double() for w in weights], widened(network)
    shifted = [w + y / consensus.penalty for w, y in zip(doubles, consensus.duals, strict=True)]
    price = None if problem.weight is None else problem.weight / consensus.penalty
    descent = Descent(map, form_of(wide, doubles), shifted, price)
    place = _projected(descent, _start(descent, consensus, wide, problem))
    values = tuple(value.cpu().numpy() for value in descent.form.unshared(place.logs.exp()))
    moved = replace(
        consensus,
        weights=[w.clone() for w in place.weights],
        bound=math.sqrt(place.rho),
        multipliers=Multipliers(place.rho, values),
    )
    return update_duals(moved, doubles, consensus.weights, problem.balance)


def _projected(descent: Descent, start: Place) -> Place:
    """V itself where it is inside for the multipliers of the start."""
    if descent.price is None:
        there = centre(descent.map, descent.form, replace(start, weights=descent.target), 1)
        if there is not None:
            return there
    gap = 0.5 * start.distance(descent.target) ** 2 + (descent.price or 0.0) * start.rho
    return descent.run(start, [share * gap / descent.map.width for share in _SHARES], _ITERATIONS)[-1]


def _start(descent: Descent, consensus: Consensus, wide: Network, problem: Problem) -> Place:
    """The last projection, or V scaled down; with the bound free, V itself with what LipSDP proves of it."""
    known, map, form = consensus.multipliers, descent.map, descent.form
    if known is not None:
        logs = form.shared(known.values).log()
        tried = (Place([factor * w for w in consensus.weights], logs, known.rho) for factor in _BACK)
        inside = next(filter(None, (centre(map, form, place, 1) for place in tried)), None)
        if inside is not None:
            return inside
    if problem.max_lipschitz is not None:
        return scaled_inside(map, wide, descent.target, problem.max_lipschitz)
    found = interior_point.propose(map.network(wide, descent.target), rtol=1e-3).multipliers
    bound = squared(max(math.sqrt(_FREE * found.rho), 1e-6))
    return scaled_inside(map, wide, descent.target, math.sqrt(bound))
