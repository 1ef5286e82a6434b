"""Weights strictly inside the certified set of a graph: all scaled alike, until LipSDP proves the bound with room."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lightning_lipschitz.bounds import interior_point
from lightning_lipschitz.errors import ProjectionError, SolverError
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.multipliers import squared
from lightning_lipschitz.training.path.constraint import Constraint, Place

_RTOL = 1e-3  # of LipSDP, which only has to find a start
# of the way from the bound at zero weights to the one asked for: where the start may be
_LOW, _GOAL, _HIGH = 0.75, 0.88, 0.97
_NARROW = 1.1  # interval of t that is not worth another solve
_TRIALS = 60
_LEAST_MULTIPLIER = 1e-9  # of the largest in its layer
_STEPS = 8  # of Newton's method, towards the centre of the multipliers
_FINITE = "Add a small constant to what the layer divides by."
_ALMOST_ZERO = 2.0**-20  # stands for zero where a layer divides by its own weights


def scaled_inside(
    constraint: Constraint, weights: Sequence[Tensor], max_lipschitz: float, device: str = "auto"
) -> Place:
    """``t * weights`` with t in (0, 1] as large as a few solves of LipSDP find.

    The bound is no power of t where some paths have more weights than others, and skip connections have none: their
    bound remains at t = 0.

    Args:
        constraint: the inequality of the model.
        weights: float64.
        max_lipschitz: the bound that is to be left room to.
        device: where LipSDP computes.

    Raises:
        ProjectionError: the bound at zero weights is not below the one asked for.
        SolverError: no such t was found.
    """
    rho, least = squared(max_lipschitz), require_reachable(constraint, weights, max_lipschitz)
    room = max_lipschitz - least
    low, high, t, best = 0.0, 1.0, 1.0, None
    for _ in range(_TRIALS):
        moved = [t * weight for weight in weights]
        found = interior_point.propose(constraint.network(moved), rtol=_RTOL, device=device).multipliers
        share = (math.sqrt(found.rho) - least) / room
        place = Place(moved, _logs(constraint, found.values), rho)
        centred = constraint.centred(place, _STEPS) if share <= _HIGH else None
        if centred is None:
            high = t
        else:
            low, best = t, centred
            if share >= _LOW or t == 1.0 or high < _NARROW * low:
                return best
        guess = t * (max(share, 1e-12) / _GOAL) ** (-1.0 / len(weights))
        t = guess if low < guess < high else math.sqrt(low * high) or 0.5 * high
    if best is None:
        raise SolverError("no smaller weights were found that meet the bound; it may be out of the range of float64.")
    return best


def require_reachable(constraint: Constraint, weights: Sequence[Tensor], max_lipschitz: float) -> float:
    """The bound that is left at zero weights.

    Raises:
        ProjectionError: it is not below ``max_lipschitz``.
    """
    least = _bound(_at_zero(constraint, weights))
    if least >= max_lipschitz * (1.0 - 1e-6):
        raise _unreachable(least, max_lipschitz)
    return least


def _at_zero(constraint: Constraint, weights: Sequence[Tensor]) -> Network:
    """The network at zero weights, or at almost zero ones where weights are divided by themselves.

    Raises:
        ProjectionError: there is neither.
    """
    for factor in (0.0, _ALMOST_ZERO):
        zeros = [factor * weight.detach().double() for weight in weights]
        missing = [k for (k, _), block in constraint.map(zeros).items() if not bool(block.isfinite().all())]
        if not missing:
            return constraint.network(zeros)
    reason = "its matrices are not finite at weights near zero, from where weights that meet the bound are looked for."
    name = [*(layer.name for layer in constraint.wide.layers), ""][min(missing) - 1]
    raise ProjectionError(name, "model", reason, _FINITE)


def _bound(network: Network) -> float:
    if not any(term.matrix.any() for affine in network.affines for term in affine.terms):
        return 0.0
    return math.sqrt(interior_point.propose(network, rtol=_RTOL).multipliers.rho)


def _logs(constraint: Constraint, values: Sequence[Array]) -> Tensor:
    return constraint.logs([np.maximum(value, _LEAST_MULTIPLIER * value.max() or 1.0) for value in values])


def _unreachable(least: float, max_lipschitz: float) -> ProjectionError:
    reason = (
        f"what no smaller weights can change, such as skip connections, frozen layers and layers that are divided by a"
        f" norm of their weights, has a Lipschitz bound of {least:.4g} alone, not below the {max_lipschitz:.4g} asked"
        f" for."
    )
    return ProjectionError(
        "", "model", reason, "Ask for a larger bound, scale the skip connections down, or unfreeze more layers."
    )
