r"""The alternating direction method of multipliers for training under a bound: between two stretches of training.

    minimise loss(W)  subject to  W = W_bar,  M(L^2, lambda; W_bar) >= 0        (or  + mu rho  with rho = L^2 free)

(Pauli, Koch, Berberich, Kohler, Allgöwer, "Training robust neural networks using Lipschitz bounds", L-CSS 2021). With
r the penalty and Y the dual variable, the three steps that repeat are

    W      by training on  loss(W) + <Y, W - W_bar> + r/2 |W - W_bar|^2: the loss's gradient  + Y + r (W - W_bar)
    W_bar  <- the projection of W + Y / r on the certified set of lambda, lambda from LipSDP on W
    Y      <- Y + r (W - W_bar).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training import path, spectral_ball
from lightning_lipschitz.training.consensus import Consensus, ConsensusProblem, norm
from lightning_lipschitz.training.multipliers import widened
from lightning_lipschitz.weights import StoredWeights
from lightning_lipschitz.weights.maps import with_weights

_IMBALANCE, _FACTOR = 3.0, 2.0  # residual balancing of Boyd et al. 2011, section 3.4.1, where 10 and 2 stand


@torch.no_grad()
def advance(
    stored: StoredWeights, consensus: Consensus, weights: Sequence[Tensor], network: Network, problem: ConsensusProblem
) -> Consensus:
    """One round: W_bar with its multipliers, Y, and the penalty if it is to follow the residuals.

    Args:
        stored: where the weights are.
        consensus: of the round before.
        weights: W, as training left them.
        network: its slopes and groups are used, not its matrices.
        problem: the bound, or its price.

    Raises:
        ProjectionError: no weights meet the bound, because of skip connections.
        SolverError, NonFiniteError: LipSDP failed; weights that are not finite.
    """
    doubles = [w.detach().to(torch.float64, copy=True) for w in weights]
    shifted = [w + y / consensus.penalty for w, y in zip(doubles, consensus.duals, strict=True)]
    if stored.is_chain:
        moved = spectral_ball.advance(consensus, with_weights(widened(network), doubles), doubles, shifted, problem)
    else:
        moved = path.advance(consensus, path.Constraint.of(stored.map(network), network, doubles), shifted, problem)
    return _update_duals(moved, doubles, consensus.weights, problem.balance)


def _update_duals(new: Consensus, weights: Sequence[Tensor], before: Sequence[Tensor], balance: bool) -> Consensus:
    """Y after W_bar has moved, and the residuals."""
    gaps = [w - wbar for w, wbar in zip(weights, new.weights, strict=True)]
    duals = [y + new.penalty * gap for y, gap in zip(new.duals, gaps, strict=True)]
    moves = [a - b for a, b in zip(new.weights, before, strict=True)]
    primal = _ratio(norm(gaps), max(norm(weights), norm(new.weights)))
    dual = _ratio(new.penalty * norm(moves), norm(duals))
    penalty = new.penalty * (_balance(primal, dual) if balance else 1.0)
    return replace(new, duals=duals, penalty=penalty, primal_residual=primal, dual_residual=dual)


def _balance(primal: float, dual: float) -> float:
    if primal > _IMBALANCE * dual:
        return _FACTOR
    return 1.0 / _FACTOR if dual > _IMBALANCE * primal else 1.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
